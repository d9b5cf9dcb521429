// cc/kernels/cuda/primitives.h for the host: runs the CUDA kernels on a machine without a GPU.
//
// The threads of a block are fibers of one thread of the host, each with its own stack. One runs
// until it waits for others (SyncThreads, or any function that a whole warp takes part in); which
// one runs next is drawn at random, so that a missing barrier shows. What would hang or be
// undefined on a device ends the process: a barrier that not all threads reach, reading or writing
// beyond the shared memory that a launch asked for. Copies in the background happen as late as the
// program allows: when it waits for them. Uninitialised shared memory is NaN.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_CUDA_EMULATION_H_
#define TF_DEFORMABLE_TESTS_NATIVE_CUDA_EMULATION_H_

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "kernels/base/float_types.h"
#include "kernels/base/status.h"
#include "kernels/cuda/device_limits.h"

#define TF_DEFORMABLE_KERNEL(threads, blocks)
#define TF_DEFORMABLE_DEVICE inline

namespace tf_deformable {
namespace cuda {

struct alignas(16) Vector16 {
  uint32_t words[4];
};

namespace emulation {

[[noreturn]] inline void Fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

// --- Fibers --------------------------------------------------------------------------------------

#if defined(__x86_64__)
using Context = void*;  // the stack pointer, above which the registers to be kept were pushed
extern "C" void TfDeformableSwitchFiber(Context* from, Context to);
asm(R"(
.text
.weak TfDeformableSwitchFiber
.type TfDeformableSwitchFiber, @function
TfDeformableSwitchFiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size TfDeformableSwitchFiber, .-TfDeformableSwitchFiber
)");
inline void Switch(Context* from, Context* to) { TfDeformableSwitchFiber(from, *to); }
inline void Prepare(Context* context, char* stack, int64_t size, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  *context = top;
}
#else
using Context = ucontext_t;
inline void Switch(Context* from, Context* to) { swapcontext(from, to); }
inline void Prepare(Context* context, char* stack, int64_t size, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = size;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
#endif

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Copy {
  void* to;
  const void* from;
  bool present;
};

struct Fiber {
  Context context;
  State state;
  int collectives;                        // that the thread has taken part in
  std::vector<std::vector<Copy>> copies;  // in the background, by commit; the last is open
  std::vector<std::vector<std::function<void()>>> products;  // of its warpgroup, likewise
};

// What the lanes of a warp show each other; two, for a lane may be one collective ahead.
struct Exchange {
  unsigned char data[2][32][64];
};

class Machine {
 public:
  static constexpr int kMostThreads = 1024;
  static constexpr int64_t kStackBytes = 64 << 10;
  static constexpr int64_t kMostSharedBytes = 227 << 10;

  static Machine& Get() {
    static Machine machine;
    return machine;
  }

  void Run(int64_t blocks, int threads, int64_t shared_bytes, std::function<void()> kernel) {
    if (threads % 32 != 0 || threads > kMostThreads) Fail("the block has an odd size");
    if (shared_bytes > kMostSharedBytes) Fail("the block asks for too much shared memory");
    threads_ = threads;
    kernel_ = std::move(kernel);
    // The end of what was asked for is the end of a page.
    shared_ = arena_ + SharedPages() - (shared_bytes + 1023) / 1024 * 1024;
    std::vector<int64_t> order(blocks);
    for (int64_t i = 0; i < blocks; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_);
    for (int64_t block : order) RunBlock(block, shared_bytes);
  }

  int thread() const { return current_; }
  int64_t block() const { return block_; }
  char* shared() const { return shared_; }
  Fiber& fiber() { return fibers_[current_]; }

  void Wait(State state) {
    Fiber& self = fibers_[current_];
    self.state = state;
    Switch(&self.context, &scheduler_);
  }

  // Shows `mine` to the warp and returns what its lanes show.
  template <typename Mine>
  const unsigned char (*Show(const Mine& mine))[64] {
    static_assert(sizeof(Mine) <= 64);
    Exchange& exchange = exchanges_[current_ / 32];
    const int turn = fibers_[current_].collectives++ % 2;
    std::memcpy(exchange.data[turn][current_ % 32], &mine, sizeof(Mine));
    Wait(State::kAtWarpBarrier);
    return exchange.data[turn];
  }

 private:
  static int64_t SharedPages() {
    const int64_t page = sysconf(_SC_PAGESIZE);
    return (kMostSharedBytes + page - 1) / page * page;
  }

  Machine() : fibers_(kMostThreads), exchanges_(kMostThreads / 32) {
    const int64_t page = sysconf(_SC_PAGESIZE), shared = SharedPages();
    const auto map = [](int64_t bytes) {
      void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) Fail("no memory");
      return static_cast<char*>(memory);
    };
    stacks_ = map(kMostThreads * kStackBytes);
    arena_ = map(shared + page);
    mprotect(arena_ + shared, page, PROT_NONE);
    if (const char* seed = std::getenv("TF_DEFORMABLE_EMULATION_SEED")) {
      random_.seed(std::atoi(seed));
    }
  }

  void RunBlock(int64_t block, int64_t shared_bytes) {
    block_ = block;
    std::memset(shared_, 0xff, shared_bytes);
    ready_.clear();
    for (int i = 0; i < threads_; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.state = State::kReady;
      fiber.collectives = 0;
      fiber.copies.assign(1, {});
      fiber.products.assign(1, {});
      Prepare(&fiber.context, stacks_ + i * kStackBytes, kStackBytes, Enter);
      ready_.push_back(i);
    }
    for (int done = 0; done < threads_;) {
      if (ready_.empty()) ReleaseBlock();
      const int pick = random_() % ready_.size();
      current_ = ready_[pick];
      ready_[pick] = ready_.back();
      ready_.pop_back();
      Switch(&scheduler_, &fibers_[current_].context);
      if (fibers_[current_].state == State::kDone) ++done;
      if (fibers_[current_].state == State::kAtWarpBarrier) ReleaseWarp(current_ / 32 * 32);
    }
  }

  static void Enter() {
    Machine& machine = Get();
    machine.kernel_();
    machine.Wait(State::kDone);
    Fail("a thread that had ended went on");
  }

  // Lets the warp go on if all of it has arrived.
  void ReleaseWarp(int first) {
    for (int i = first; i < first + 32; ++i) {
      if (fibers_[i].state != State::kAtWarpBarrier) return;
      if (fibers_[i].collectives != fibers_[first].collectives) Fail("a warp has diverged");
    }
    for (int i = first; i < first + 32; ++i) {
      fibers_[i].state = State::kReady;
      ready_.push_back(i);
    }
  }

  void ReleaseBlock() {
    for (int i = 0; i < threads_; ++i) {
      if (fibers_[i].state != State::kAtBlockBarrier) Fail("not all threads reach a barrier");
    }
    for (int i = 0; i < threads_; ++i) {
      fibers_[i].state = State::kReady;
      ready_.push_back(i);
    }
  }

  int threads_ = 0, current_ = 0;
  int64_t block_ = 0;
  std::function<void()> kernel_;
  Context scheduler_;
  std::vector<Fiber> fibers_;
  std::vector<Exchange> exchanges_;
  std::vector<int> ready_;
  char *stacks_, *arena_, *shared_ = nullptr;
  std::mt19937 random_;
};

inline void Perform(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.present) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
}

inline void CheckAligned(const void* pointer, int64_t alignment) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0) Fail("an address is not aligned");
}

inline float FromBits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
inline uint32_t ToBits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

}  // namespace emulation

// --- Threads -------------------------------------------------------------------------------------

inline int ThreadIndex() { return emulation::Machine::Get().thread(); }
inline int64_t BlockIndex() { return emulation::Machine::Get().block(); }
inline void SyncThreads() { emulation::Machine::Get().Wait(emulation::State::kAtBlockBarrier); }
inline void SyncWarp() { emulation::Machine::Get().Show(0); }

template <typename T>
T ShuffleXor(T value, int lanes) {
  const auto* shown = emulation::Machine::Get().Show(value);
  std::memcpy(&value, shown[(ThreadIndex() % 32) ^ lanes], sizeof(value));
  return value;
}

inline char* SharedMemory() { return emulation::Machine::Get().shared(); }

// --- Memory --------------------------------------------------------------------------------------

struct uint2 {
  uint32_t x, y;
};

inline Vector16 LoadGlobal16(const void* from) {
  emulation::CheckAligned(from, 16);
  Vector16 v;
  std::memcpy(v.words, from, sizeof(v.words));
  return v;
}
inline uint2 LoadGlobal8(const void* from) {
  emulation::CheckAligned(from, 8);
  uint2 v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void CopyAsync16(void* to, const void* from, bool present) {
  emulation::CheckAligned(to, 16);
  emulation::CheckAligned(from, 16);
  emulation::Machine::Get().fiber().copies.back().push_back({to, from, present});
}
inline void CommitCopies() { emulation::Machine::Get().fiber().copies.emplace_back(); }
template <int kPending>
void WaitForCopies() {
  auto& copies = emulation::Machine::Get().fiber().copies;
  while (copies.size() > kPending + 1) {
    emulation::Perform(copies.front());
    copies.erase(copies.begin());
  }
}

inline void AtomicAdd(float* to, float value) { *to += value; }
inline void AtomicAdd(double* to, double value) { *to += value; }
inline int32_t AtomicAdd(int32_t* to, int32_t value) {
  const int32_t before = *to;
  *to += value;
  return before;
}
inline void AtomicAdd4(float* to, const float (&values)[4]) {
  emulation::CheckAligned(to, 16);
  for (int i = 0; i < 4; ++i) to[i] += values[i];
}

// --- Numbers -------------------------------------------------------------------------------------

inline float ToCompute(float v) { return v; }
inline double ToCompute(double v) { return v; }
inline float ToCompute(BFloat16 v) {
  return emulation::FromBits(static_cast<uint32_t>(v.bits) << 16);
}
inline float ToCompute(Half v) {
  _Float16 half;
  std::memcpy(&half, &v.bits, sizeof(half));
  return static_cast<float>(half);
}

template <typename T>
T FromCompute(ComputeType<T> v);
template <>
inline float FromCompute<float>(float v) {
  return v;
}
template <>
inline double FromCompute<double>(double v) {
  return v;
}
template <>
inline Half FromCompute<Half>(float v) {
  const auto half = static_cast<_Float16>(v);
  Half result;
  std::memcpy(&result.bits, &half, sizeof(half));
  return result;
}
template <>
inline BFloat16 FromCompute<BFloat16>(float v) {
  const uint32_t bits = emulation::ToBits(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline uint32_t ToTensorFloat32(float v) {
  const uint32_t bits = emulation::ToBits(v);
  if ((bits & 0x7f800000) == 0x7f800000) return v != v ? 0x7fffe000 : bits;
  return (bits + 0x1000) & ~0x1fffu;  // halves away from zero
}

inline float BitsToFloat(uint32_t bits) { return emulation::FromBits(bits); }
inline uint32_t FloatToBits(float v) { return emulation::ToBits(v); }

// --- Tensor cores --------------------------------------------------------------------------------

namespace emulation {

// Element `index` of a register of T: 16-bit types have two.
inline float Element(BFloat16, uint32_t word, int index) {
  return ToCompute(BFloat16{static_cast<uint16_t>(word >> 16 * index)});
}
inline float Element(Half, uint32_t word, int index) {
  return ToCompute(Half{static_cast<uint16_t>(word >> 16 * index)});
}
// The device ignores the bits beyond TF32's; to have forgotten to round must not go unseen.
inline float Element(float, uint32_t word, int) {
  return (word & 0x1fff) == 0 ? FromBits(word) : std::nanf("");
}

struct LaneMatrixRow {
  const void* row;
};

inline const unsigned char* MatrixRow(const unsigned char (*shown)[64], int matrix, int row) {
  LaneMatrixRow lane;
  std::memcpy(&lane, shown[matrix * 8 + row], sizeof(lane));
  return static_cast<const unsigned char*>(lane.row);
}

}  // namespace emulation

inline void LoadMatrices(const void* row, uint32_t (&r)[4]) {
  emulation::CheckAligned(row, 16);
  const auto* shown = emulation::Machine::Get().Show(emulation::LaneMatrixRow{row});
  const int lane = ThreadIndex() % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(&r[matrix], emulation::MatrixRow(shown, matrix, lane / 4) + lane % 4 * 4, 4);
  }
}

inline void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]) {
  emulation::CheckAligned(row, 16);
  const auto* shown = emulation::Machine::Get().Show(emulation::LaneMatrixRow{row});
  const int lane = ThreadIndex() % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const auto* from = emulation::MatrixRow(shown, matrix, lane % 4 * 2 + i);
      std::memcpy(&pair[i], from + lane / 4 * 2, 2);
    }
    r[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

// Fragments as the PTX ISA has them (mma.m16n8k16 for 16-bit types, mma.m16n8k8 for TF32): lane
// (g, t) = (lane / 4, lane % 4) holds of a the rows g and g + 8, of b the column g, of d the
// columns 2t and 2t + 1; in depth, the register's elements from t * (elements) on, and half of it
// further.
template <typename T>
void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kPerWord = 4 / sizeof(T), kHalf = 4 * kPerWord;
  struct Fragments {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const auto* shown = emulation::Machine::Get().Show(mine);
  const int lane = ThreadIndex() % 32;
  const auto word = [&](int from, int index) {  // 0..3: a, 4..5: b
    uint32_t w;
    std::memcpy(&w, shown[from] + 4 * index, sizeof(w));
    return w;
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = d[i];
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int t = k % kHalf / kPerWord, half = k / kHalf, element = k % kPerWord;
      const uint32_t wa = word(row % 8 * 4 + t, row / 8 + 2 * half);
      const uint32_t wb = word(column * 4 + t, 4 + half);
      sum += emulation::Element(T{}, wa, element) * emulation::Element(T{}, wb, element);
    }
    d[i] = sum;
  }
}

// --- Warpgroups ----------------------------------------------------------------------------------

inline constexpr bool kHasWarpgroupProducts = true;

class SwizzledTile {
 public:
  explicit SwizzledTile(const void* tile) : tile_(static_cast<const char*>(tile)) {
    emulation::CheckAligned(tile, 1024);
  }
  const char* Columns(int step) const { return tile_ + 32 * step; }

 private:
  const char* tile_;
};

inline void ShowToWarpgroups() {}
inline void BeginWarpgroupProducts() { SyncWarp(); }
inline void CommitWarpgroupProducts() { emulation::Machine::Get().fiber().products.emplace_back(); }
// Products happen here, as late as they may.
template <int kPending>
void WaitForWarpgroupProducts() {
  auto& products = emulation::Machine::Get().fiber().products;
  while (products.size() > kPending + 1) {
    for (const auto& product : products.front()) product();
    products.erase(products.begin());
  }
}

template <typename T, int kColumns>
struct WarpgroupMultiplyAdd {
  static void Run(float (&d)[kColumns / 2], const char* a, const char* b) {
    const int lane = ThreadIndex() % 32, warp = ThreadIndex() / 32 % 4;
    float* const sums = d;
    emulation::Machine::Get().fiber().products.back().push_back([=] {
      for (int i = 0; i < kColumns / 2; ++i) {
        const int row = warp * 16 + i / 2 % 2 * 8 + lane / 4;
        const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = sums[i];
        for (int k = 0; k < 32 / static_cast<int>(sizeof(T)); ++k) {
          sum += Element(a, row, k) * Element(b, column, k);
        }
        sums[i] = sum;
      }
    });
  }

 private:
  static float Element(const char* tile, int row, int k) {
    auto at = reinterpret_cast<uintptr_t>(tile) + row * 128 + k * sizeof(T);
    at ^= (at >> 7 & 7) << 4;
    uint32_t word = 0;
    std::memcpy(&word, reinterpret_cast<const void*>(at), sizeof(T));
    return emulation::Element(T{}, word, 0);
  }
};

// --- Launching -----------------------------------------------------------------------------------

#if defined(TF_DEFORMABLE_OBSERVE_LAUNCHES)
void ObserveLaunch(const void* kernel);
#endif

template <typename... Parameters>
[[nodiscard]] Status Launch(const char*, void (*kernel)(Parameters...), int64_t blocks, int threads,
                            int64_t shared_bytes, void*, const Parameters&... parameters) {
#if defined(TF_DEFORMABLE_OBSERVE_LAUNCHES)
  ObserveLaunch(reinterpret_cast<const void*>(kernel));
#endif
  emulation::Machine::Get().Run(blocks, threads, shared_bytes, [&] { kernel(parameters...); });
  return Status();
}

[[nodiscard]] inline Status FillZeros(const char*, void* memory, int64_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return Status();
}

[[nodiscard]] inline Status ReadDeviceLimits(const char*, DeviceLimits* limits) {
  limits->multiprocessors = 3;
  limits->shared_bytes_per_block = emulation::Machine::kMostSharedBytes;
  limits->shared_bytes_per_multiprocessor = 228 << 10;
  limits->has_warpgroup_products = true;
  return Status();
}

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_CUDA_EMULATION_H_
