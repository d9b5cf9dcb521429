// What lets the libraries load beside a libstdc++ older than the compiler's own.
//
// From version 11 on, g++ calls this for the size of an array that is too large, and libstdc++ has
// it. It is the only symbol of that version (GLIBCXX_3.4.29) that the libraries would need: each
// has one of its own, which it does not export.

#include <new>

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
