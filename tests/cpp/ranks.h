/// \file
/// Runs the ranks of a test or a benchmark, as threads of this process or as processes of their own.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/transports.h"

namespace aliquot::test {

/// Long enough never to pass in a test that is right, even under a sanitizer.
inline constexpr std::chrono::seconds patience(60);

using RankBody = std::function<void(Communicator&)>;
using ProcessBody = std::function<void(const KeyValueStore& store, int rank)>;

/// How a rank ended: message is empty where its body returned.
struct Outcome {
  int signal = 0;       ///< what killed the process, or 0
  std::string message;  ///< what() of the exception that left the body
};

/// Throws unless `condition`: an assertion for bodies.
inline void require(bool condition, const std::string& otherwise) {
  if (!condition) throw std::runtime_error(otherwise);
}

/// A store in a new directory below the system's temporary one; removed with the object.
class DirectoryStore {
 public:
  DirectoryStore() : directory_((std::filesystem::temp_directory_path() / "aliquot-store-XXXXXX").string()) {
    require(mkdtemp(directory_.data()) != nullptr, "mkdtemp " + directory_);
  }
  ~DirectoryStore() { std::filesystem::remove_all(directory_); }
  DirectoryStore(const DirectoryStore&) = delete;
  DirectoryStore& operator=(const DirectoryStore&) = delete;

  KeyValueStore store() const {
    return {[this](const std::string& key, const std::string& value) { write(path(key), value); },
            [this](const std::string& key) { return read(path(key)); }};
  }

 private:
  std::filesystem::path path(std::string key) const {
    std::replace(key.begin(), key.end(), '/', '.');
    return std::filesystem::path(directory_) / key;
  }
  static void write(const std::filesystem::path& path, const std::string& value) {
    const std::string unfinished = path.string() + "~";
    std::ofstream(unfinished) << value;
    std::filesystem::rename(unfinished, path);
  }
  static std::string read(const std::filesystem::path& path) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!std::filesystem::exists(path)) {
      require(std::chrono::steady_clock::now() < end, "nobody has set " + path.string());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::ostringstream value;
    value << std::ifstream(path).rdbuf();
    return value.str();
  }

  std::string directory_;
};

inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

/// A forked process that runs `body` and tells how that ended.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    int ends[2];
    require(pipe(ends) == 0, "pipe");
    pid_ = fork();
    require(pid_ >= 0, "fork");
    if (pid_ == 0) live(ends[1], body);
    close(ends[1]);
    report_ = ends[0];
  }

  /// Blocks until the process has ended, and leaves it a zombie.
  std::string message() const {
    std::string text;
    char piece[512];
    for (ssize_t n; (n = ::read(report_, piece, sizeof piece)) > 0;) text.append(piece, static_cast<std::size_t>(n));
    close(report_);
    return text;
  }
  int signal() const {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }

 private:
  [[noreturn]] static void live(int report, const std::function<void()>& body) {
    const std::string message = message_of(body);
    const bool told = ::write(report, message.data(), message.size()) == static_cast<ssize_t>(message.size());
    _exit(told && message.empty() ? 0 : 1);
  }

  pid_t pid_;
  int report_;
};

/// Each rank's body in a thread, with its communicator, which ends with the body.
inline std::vector<Outcome> run_threads(int world_size, const RankBody& body,
                                        std::chrono::milliseconds timeout = patience) {
  auto communicators = make_thread_communicators(world_size, timeout);
  std::vector<Outcome> outcomes(communicators.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    threads.emplace_back([&body, &outcome = outcomes[r], mine = std::move(communicators[r])]() mutable {
      outcome.message = message_of([&] { body(*mine); });
      mine.reset();
    });
  }
  threads.clear();
  return outcomes;
}

/// Each rank's body in a forked process. A rank that was killed stays a zombie until all have ended. gtest assertions
/// count only in the parent: let a body throw (`require`).
inline std::vector<Outcome> run_processes(int world_size, const ProcessBody& body) {
  const DirectoryStore directory;
  std::vector<Child> children;
  for (int rank = 0; rank < world_size; ++rank) children.emplace_back([&, rank] { body(directory.store(), rank); });
  std::vector<Outcome> outcomes(children.size());
  for (std::size_t r = 0; r < children.size(); ++r) outcomes[r].message = children[r].message();
  for (std::size_t r = 0; r < children.size(); ++r) outcomes[r].signal = children[r].signal();
  return outcomes;
}

/// With a communicator each. SIGALRM ends what hangs in spite of its timeout.
inline std::vector<Outcome> run_processes(int world_size, const RankBody& body,
                                          std::chrono::milliseconds timeout = patience) {
  return run_processes(world_size, [&](const KeyValueStore& store, int rank) {
    alarm(static_cast<unsigned>(std::chrono::ceil<std::chrono::seconds>(timeout + patience).count()));
    body(*make_shared_memory_communicator(store, "test", rank, world_size, timeout));
  });
}

}  // namespace aliquot::test
