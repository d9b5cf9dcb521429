// What a case of the fuzzers is made of: numbers from a seed, or from the bytes of an input.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_CHOICES_H_
#define TF_DEFORMABLE_TESTS_NATIVE_CHOICES_H_

#include <cstddef>
#include <cstdint>
#include <random>

namespace tf_deformable {

class Choices {
 public:
  virtual ~Choices() = default;

  // A number in [low, high]: what decides the course of a case.
  virtual int Between(int low, int high) = 0;
  bool Chance(int one_in) { return Between(1, one_in) == 1; }

  // Any bits: for elements of tensors and the order of units, of which there are too many to be
  // bytes of an input.
  virtual uint32_t Noise() = 0;

  // Sets `byte` to one that is there for an element of a tensor; false without.
  virtual bool Element(uint8_t* byte) = 0;
};

class SeededChoices : public Choices {
 public:
  explicit SeededChoices(uint32_t seed) : state_(seed) {}
  int Between(int low, int high) override {
    return std::uniform_int_distribution<int>(low, high)(state_);
  }
  uint32_t Noise() override { return state_(); }
  bool Element(uint8_t*) override { return false; }

 private:
  std::mt19937 state_;
};

// The input's first two bytes are the seed of the noise; a number takes as few bytes as it needs.
// After the last one every number is the lowest, so that every input is a case, and what is left of
// the bytes of a short one is easy to understand.
class ByteChoices : public Choices {
 public:
  ByteChoices(const uint8_t* data, size_t size) : data_(data), end_(data + size) {
    const uint32_t low = Next(), high = Next();
    noise_.seed(low | high << 8);
  }
  int Between(int low, int high) override {
    const uint32_t values = static_cast<uint32_t>(high) - static_cast<uint32_t>(low) + 1;
    if (values == 1) return low;
    uint32_t number = Next();
    for (uint32_t rest = (values - 1) >> 8; rest > 0; rest >>= 8) number = number << 8 | Next();
    return static_cast<int>(static_cast<uint32_t>(low) + (values > 0 ? number % values : number));
  }
  uint32_t Noise() override { return noise_(); }
  bool Element(uint8_t* byte) override {
    if (data_ == end_) return false;
    *byte = *data_++;
    return true;
  }

 private:
  uint8_t Next() { return data_ < end_ ? *data_++ : 0; }

  const uint8_t* data_;
  const uint8_t* const end_;
  std::mt19937 noise_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_CHOICES_H_
