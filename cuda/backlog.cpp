#include "cuda/backlog.h"

namespace aliquot::cuda {

Backlog::Backlog(Device device) {
  for (Event& mark : marks_) mark = Event(device);
}

}  // namespace aliquot::cuda
