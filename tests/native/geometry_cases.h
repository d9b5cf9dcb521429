// Validation and geometry of all operators, on shapes and attributes that no tensor may have, and
// the plans of what passes it.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_GEOMETRY_CASES_H_
#define TF_DEFORMABLE_TESTS_NATIVE_GEOMETRY_CASES_H_

#include "choices.h"

namespace tf_deformable {

// Makes arguments of an operator, most often nearly right ones, and checks what is said of them:
//
// - The message of an error names the operator, and what was got.
// - What is right stays so when parts of it are unknown, and what then follows is the same.
// - Plans of what fits into memory have workspaces of bounded size.
//
// Prints what does not hold and returns false.
bool RunGeometryCase(Choices* choices);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_GEOMETRY_CASES_H_
