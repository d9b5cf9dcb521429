#include "switch.h"

#include <cstdlib>

namespace tf_deformable {
namespace {

int MutantOfTheEnvironment() {
  const char* number = std::getenv("TF_DEFORMABLE_MUTANT");
  return number == nullptr ? 0 : std::atoi(number);
}

}  // namespace

int mutant = MutantOfTheEnvironment();

}  // namespace tf_deformable
