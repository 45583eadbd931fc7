// Preloaded into an operator: its clock is off by ASYSI_SKEW seconds, as on a node that nobody sets right.

#include <dlfcn.h>
#include <sys/time.h>

#include <cstdlib>
#include <ctime>

namespace {

time_t skew() {
  const char* seconds = std::getenv("ASYSI_SKEW");
  return seconds == nullptr ? 0 : std::atol(seconds);
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* now) noexcept {
  static const auto real = reinterpret_cast<int (*)(clockid_t, timespec*)>(::dlsym(RTLD_NEXT, "clock_gettime"));
  const int failed = real(clock, now);
  if (!failed && clock == CLOCK_REALTIME) now->tv_sec += skew();
  return failed;
}

extern "C" time_t time(time_t* out) noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) *out = now.tv_sec;
  return now.tv_sec;
}
