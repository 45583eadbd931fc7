// Small files in which the kernel tells numbers, read without iostreams: beside a CUDA build of torch (2.11, cu130) a stream
// in this module read 137438953472 as 0 without an error. What another library brings into the process cannot disturb read().
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

/// What a file holds; nothing when it cannot be read.
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

/// The number that a text begins with, after blanks; nothing when it begins with none.
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

/// Takes the first line off a text.
inline std::string_view next_line(std::string_view& text) {
    const auto end = text.find('\n');
    const auto line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    return line;
}

/// How much memory a control group may take, and the file that says so; without a limit the largest number and no file.
struct MemoryLimit {
    std::uint64_t bytes = ~std::uint64_t{0};
    std::string file;
};

/// The least limit of this process's control group and of those around it: each binds.
///
/// A limit below what the group uses already is not believed. `root` stands before the paths, for tests.
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
