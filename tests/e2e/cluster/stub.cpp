// Stands in for every worker of an experiment's pod: tiny, and it does what a label of the experiment tells it.
//
// The label `stub/<container>` is one of
//   exit-N   say a few last words and exit with code N at once
//   oom      take memory until the kernel ends it
//   deaf     start, then fail every liveness probe
//   run-N    for host: end well after N seconds
// Without one it serves until SIGTERM. `finish` ends well once the host has.

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTerminated = 143;
const std::string kStarted = "/workspace/host-started", kEnded = "/workspace/host-ended";
volatile std::sig_atomic_t told_to_end = 0;

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The value of a label in the experiment's file: it stands there as `"stub/host": "run-3"`.
std::string label(const std::string& role) {
  const std::string text = read(variable("ASYSI_CONFIG")), key = "\"stub/" + role + "\": \"";
  const auto at = text.find(key);
  return at == std::string::npos ? "" : text.substr(at + key.size(), text.find('"', at + key.size()) - at - key.size());
}

// The next number that the folder of the results has.
int attempt() {
  const auto folder = std::filesystem::path(variable("ASYSI_OUTPUT")) / "attempts";
  std::filesystem::create_directories(folder);
  for (int number = 0;; ++number)
    if (std::filesystem::create_directory(folder / std::to_string(number))) return number;
}

std::string processors() {
  const std::string text = read("/proc/self/status"), key = "Cpus_allowed_list:\t";
  const auto at = text.find(key) + key.size();
  return text.substr(at, text.find('\n', at) - at);
}

std::string status(Clock::time_point begin) {
  const auto seen = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count();
  std::stringstream text;
  text << R"({"phase": ")" << (exists(kStarted) ? "running" : "starting") << R"(", "cpus": ")" << processors()
       << R"(", "capture": {"seen": )" << seen << R"(, "published": )" << seen
       << R"(, "sampledOut": 0, "dropped": {}}, "ledger": {"balanced": true}})";
  return text.str();
}

constexpr const char* kLastWords = R"({"attempt": 0, "complete": true, "ledger": {"balanced": true, "unbalanced": []},
 "capture": {"seen": 10, "published": 9, "sampledOut": 1, "dropped": {}}, "durable": {"archiver": 9}, "problems": []})";

int listen_on(int port) {
  const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  ::setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  if (::bind(server, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(server, 16) != 0) {
    std::perror("listen");
    std::exit(1);
  }
  return server;
}

void answer(int server, bool deaf, Clock::time_point begin) {
  const int client = ::accept(server, nullptr, nullptr);
  if (client < 0) return;
  char request[2048] = {};
  [[maybe_unused]] const auto got = ::read(client, request, sizeof request - 1);
  const bool refused = deaf && std::strstr(request, "GET /livez") == request;
  const std::string body = std::strstr(request, "GET /status") == request ? status(begin) : "well\n";
  const std::string reply = std::string("HTTP/1.1 ") + (refused ? "503 Deaf" : "200 OK") +
                            "\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  [[maybe_unused]] const auto sent = ::write(client, reply.data(), reply.size());
  ::close(client);
}

[[noreturn]] void take_memory() {
  for (std::vector<char*> taken;;) {
    constexpr std::size_t kPiece = 16 << 20;
    taken.push_back(new char[kPiece]);
    std::memset(taken.back(), 1, kPiece);
  }
}

bool starts(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

int work(const std::string& role) {
  const std::string told = label(role);
  if (starts(told, "exit-")) {
    write(variable("ASYSI_TERMINATION"), "the stub was told to exit\n");
    return std::atoi(told.c_str() + 5);
  }
  if (told == "oom") take_memory();
  if (role == "prepare") {
    write(variable("ASYSI_TERMINATION"), "{\"attempt\": " + std::to_string(attempt()) + "}");
    return 0;
  }
  if (role == "host") write(kStarted, "");
  const auto begin = Clock::now();
  const auto end = begin + std::chrono::seconds(starts(told, "run-") ? std::atoi(told.c_str() + 4) : 1 << 20);
  pollfd server{listen_on(std::atoi(variable("ASYSI_PORT").c_str())), POLLIN, 0};
  while (!told_to_end) {
    if (::poll(&server, 1, 200) > 0) answer(server.fd, told == "deaf", begin);
    if (role == "host" && Clock::now() >= end) {
      write(kEnded, "");
      return 0;
    }
    if (role == "finish" && exists(kEnded)) {
      write(variable("ASYSI_TERMINATION"), kLastWords);
      return 0;
    }
  }
  return kTerminated;
}

}  // namespace

int main(int count, char** arguments) {
  static const std::map<std::string, std::string> kRoles = {
      {"asysi.hosts.prepare", "prepare"}, {"asysi.archive", "archiver"}, {"asysi.sae", "sae"},
      {"asysi.hook", "hook"},             {"asysi.hosts.scan", "host"},  {"asysi.finish", "finish"}};
  const std::string last = arguments[count - 1];
  if (last == "processors") {
    std::cout << processors() << '\n';
    return 0;
  }
  struct sigaction action {};
  action.sa_handler = [](int) { told_to_end = 1; };
  ::sigaction(SIGTERM, &action, nullptr);
  return work(kRoles.at(last));
}
