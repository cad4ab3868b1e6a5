/// \file
/// Runs the ranks of a job as threads of this process, or as processes forked from it.
#pragma once

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <thread>

#include "aliquot/transports.h"

namespace embed {

using Body = std::function<void(aliquot::Communicator&)>;

/// False if `body` threw; the other ranks are told, rather than left to wait for this one.
inline bool succeeds(const Body& body, aliquot::Communicator& communicator) {
  try {
    body(communicator);
    return true;
  } catch (const std::exception& error) {
    communicator.abort(error.what());
    std::cerr << "rank " + std::to_string(communicator.rank()) + ": " + error.what() + "\n";
    return false;
  }
}

inline bool run_threads(int world_size, const Body& body) {
  const auto communicators = aliquot::make_thread_communicators(world_size);
  std::atomic<int> failed = 0;
  std::vector<std::jthread> threads;
  for (const auto& mine : communicators) threads.emplace_back([&] { failed += succeeds(body, *mine) ? 0 : 1; });
  threads.clear();
  return failed == 0;
}

/// A key is a file in a directory. It gets its name once it is whole, so nobody reads a part of it.
struct DirectoryStore {
  std::filesystem::path directory;

  std::filesystem::path path(std::string key) const {
    for (char& letter : key) letter = letter == '/' ? '.' : letter;
    return directory / key;
  }
  void set(const std::string& key, const std::string& value) const {
    std::ofstream(path(key + "~")) << value;
    std::filesystem::rename(path(key + "~"), path(key));
  }
  std::string get(const std::string& key) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!std::filesystem::exists(path(key))) {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("no rank has set " + key);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::ifstream file(path(key));
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

/// What a forked process does.
inline bool join(const DirectoryStore& directory, int rank, int world_size, const Body& body) {
  const aliquot::KeyValueStore store{[&](const auto& key, const auto& value) { directory.set(key, value); },
                                     [&](const auto& key) { return directory.get(key); }};
  return succeeds(body, *aliquot::make_shared_memory_communicator(store, "embed", rank, world_size));
}

inline bool run_processes(int world_size, const Body& body) {
  std::string directory = (std::filesystem::temp_directory_path() / "embed-XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) throw std::runtime_error("cannot make " + directory);
  for (int rank = 0; rank < world_size; ++rank) {
    if (fork() == 0) exit(join({directory}, rank, world_size, body) ? 0 : 1);
  }
  int failed = 0;
  for (int status = 0; wait(&status) > 0;) failed += status == 0 ? 0 : 1;
  std::filesystem::remove_all(directory);
  return failed == 0;
}

}  // namespace embed
