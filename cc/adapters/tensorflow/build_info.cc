// What this library was built for, readable from the file's bytes without loading it: a library for
// another TensorFlow could not be loaded to be asked. tf_deformable/_native.py looks for the
// marker.

#include "build_info.h"

extern "C" __attribute__((used, visibility("default"))) const char tf_deformable_build_info[] =
    "@TFD_BUILD_INFO@" TF_DEFORMABLE_BUILD_INFO;
