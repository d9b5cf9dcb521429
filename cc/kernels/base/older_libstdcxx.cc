// What lets the libraries load beside a libstdc++ older than the compiler's own.
//
// From version 11 on, g++ calls a function for the size of an array that is too large
// (GLIBCXX_3.4.29), and from version 9 on a constructor of streams (GLIBCXX_3.4.26), which the
// headers of XLA's FFI use. They are the only symbols of those versions that the libraries would
// need: each has its own, which it does not export.

#include <new>
#include <sstream>

template std::basic_stringstream<char>::basic_stringstream();

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
