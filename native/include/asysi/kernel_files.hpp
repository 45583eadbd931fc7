// Small kernel files with numbers, read without iostreams: with a CUDA build of torch (2.11, cu130) in the same process, a
// stream in this module read 137438953472 as 0 without an error. Other libraries cannot interfere with read().
#pragma once

#include <cerrno>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <unistd.h>

namespace asysi {

/// The content of a file; empty if it cannot be read.
inline std::optional<std::string> text_of(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return std::nullopt;
    std::string text;
    char block[1 << 14];
    ssize_t count = 0;
    while ((count = read(file, block, sizeof block)) > 0 || (count < 0 && errno == EINTR)) {
        if (count > 0) text.append(block, static_cast<std::size_t>(count));
    }
    close(file);
    if (count < 0) return std::nullopt;
    return text;
}

/// The number at the start of a text, after blanks; empty if there is none.
inline std::optional<std::uint64_t> number_in(std::string_view text, int base = 10) {
    const auto begin = text.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return std::nullopt;
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), number, base);
    if (error != std::errc{}) return std::nullopt;
    return number;
}

inline std::optional<std::uint64_t> number_of(const std::string& path) {
    const auto text = text_of(path);
    return text ? number_in(*text) : std::nullopt;
}

/// Removes the first line from a text and returns it.
inline std::string_view next_line(std::string_view& text) {
    const auto end = text.find('\n');
    const auto line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    return line;
}

/// Memory limit of a control group, and the file that defines it; without a limit, the maximum number and no file.
struct MemoryLimit {
    std::uint64_t bytes = ~std::uint64_t{0};
    std::string file;
};

/// The lowest limit of this process's control group and its ancestors, all of which apply.
///
/// A limit below the group's current usage is ignored. `root` is prepended to the paths, for tests.
inline MemoryLimit memory_limit(const std::string& root = {}) {
    std::string group;
    const auto groups = text_of(root + "/proc/self/cgroup").value_or("");
    for (std::string_view rest = groups; !rest.empty();) {
        if (const auto line = next_line(rest); line.starts_with("0::")) group = line.substr(3);
    }
    MemoryLimit least;
    for (;;) {
        const auto folder = root + "/sys/fs/cgroup" + group;
        const auto limit = number_of(folder + "/memory.max");  // "max" is not a number
        if (limit && *limit < least.bytes && *limit >= number_of(folder + "/memory.current").value_or(0)) {
            least = {*limit, folder + "/memory.max"};
        }
        const auto slash = group.rfind('/');
        if (slash == std::string::npos) return least;
        group.resize(slash);
    }
}

}  // namespace asysi
