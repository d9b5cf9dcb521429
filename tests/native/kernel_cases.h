// Calls of the kernels of all operators, forward and backward, on shapes and values of anyone's
// choice.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_KERNEL_CASES_H_
#define TF_DEFORMABLE_TESTS_NATIVE_KERNEL_CASES_H_

#include "choices.h"
#include "pool.h"
#include "results.h"

namespace tf_deformable {

// Makes a case of the choices and runs it, on threads of the pool if there is one, otherwise on one
// thread, in reverse order. What is read or written outside of a tensor ends the process, and its
// results go to `results`.
void RunKernelCase(Choices* choices, Pool* pool, Results* results);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_KERNEL_CASES_H_
