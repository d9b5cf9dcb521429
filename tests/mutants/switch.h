// Which mutant is on, in a build that has them all (run.py). Every file includes it.
#ifndef TF_DEFORMABLE_TESTS_MUTANTS_SWITCH_H_
#define TF_DEFORMABLE_TESTS_MUTANTS_SWITCH_H_

#ifdef __cplusplus
namespace tf_deformable {

// Its number; 0: none. The environment's TF_DEFORMABLE_MUTANT, read when the library is loaded.
extern int mutant;

}  // namespace tf_deformable
#endif

#endif  // TF_DEFORMABLE_TESTS_MUTANTS_SWITCH_H_
