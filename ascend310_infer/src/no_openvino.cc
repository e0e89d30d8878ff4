// In place of openvino.cc where the programs are built without OpenVINO.
#include "engine.h"
#include "error.h"

namespace spnas {

std::unique_ptr<Engine> LoadWithOpenVino(const std::string &, const Device &, const Shape &) {
  throw UserError(
      "runtime is openvino, this program was built without it; pip install openvino, and bash "
      "ascend310_infer/build.sh builds it anew");
}

std::string OpenVinoVersion() { return ""; }

}  // namespace spnas
