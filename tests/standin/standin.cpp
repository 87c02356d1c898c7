// The device `standin`: memory of the host with a limit, operators of the CPU, and an error where
// an operator meets a tensor that is on the CPU. See __init__.py.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <limits>
#include <mutex>

namespace {

using at::Tensor;
constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

// ---- Memory ----------------------------------------------------------------------------------

// Memory of the host. It counts bytes, and raises torch.OutOfMemoryError beyond its limit.
struct Allocator final : c10::DeviceAllocator {
  struct Block {
    void* data;
    size_t bytes;
  };

  c10::DataPtr allocate(size_t bytes) override {
    std::lock_guard<std::mutex> lock(mutex);
    size_t used = stats.allocated_bytes[0].current;
    TORCH_CHECK_WITH(OutOfMemoryError, bytes <= limit && used <= limit - bytes,
                     "standin out of memory: tried to allocate ", bytes, " bytes, ", used, " of ",
                     limit, " bytes are in use");
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    stats.allocated_bytes[0].increase(bytes);
    stats.reserved_bytes[0].increase(bytes);
    return {data, new Block{data, bytes}, &Allocator::free, kDevice};
  }
  static void free(void* context);
  // No raw deleter: the context of a block is not its data.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(mutex);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {
    stats.allocated_bytes[0].reset_accumulated();
  }
  void resetPeakStats(c10::DeviceIndex) override {
    stats.allocated_bytes[0].reset_peak();
    stats.reserved_bytes[0].reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(mutex);
    size_t used = stats.allocated_bytes[0].current;
    return {used < limit ? limit - used : 0, limit};
  }

  std::mutex mutex;
  size_t limit = size_t{1} << 40;
  c10::CachingDeviceAllocator::DeviceStats stats;
};

// Never destroyed: tensors may be freed after everything else at the end of the process.
Allocator& allocator = *new Allocator;
REGISTER_ALLOCATOR(kType, &allocator);

void Allocator::free(void* context) {
  auto* block = static_cast<Block*>(context);
  {
    std::lock_guard<std::mutex> lock(allocator.mutex);
    allocator.stats.allocated_bytes[0].decrease(block->bytes);
    allocator.stats.reserved_bytes[0].decrease(block->bytes);
  }
  if (block->data) c10::free_cpu(block->data);
  delete block;
}

// ---- Device ----------------------------------------------------------------------------------

// One device with one stream; everything is done when a call returns.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() <= 0, "there is no device ", device);
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

// ---- Tensors and copies ----------------------------------------------------------------------

std::vector<int64_t> ints(c10::SymIntArrayRef values) {
  auto plain = C10_AS_INTARRAYREF_SLOW(values);
  return {plain.begin(), plain.end()};
}

void check_index(const std::optional<at::Device>& device) {
  TORCH_CHECK(!device || device->index() <= 0, "there is no device ", *device);
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
             std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  check_index(device);
  return at::detail::empty_generic(ints(size), &allocator, c10::DispatchKeySet(
      c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device> device, std::optional<bool>) {
  check_index(device);
  return at::detail::empty_strided_generic(ints(size), ints(stride), &allocator,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the CPU.
Tensor on_host(const Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .options(at::TensorOptions().dtype(tensor.scalar_type()))
      .target_device(at::kCPU)
      .make_tensor();
}

Tensor on_device(const Tensor& tensor) { return tensor.defined() ? tensor.to(kDevice) : tensor; }

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(from.is_conj() ? on_host(from).conj() : on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, ints(size), ints(stride), start);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, ints(size));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, ints(size), ints(stride));
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size,
                     std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, ints(size), format);
}

Tensor& set_storage(Tensor& self, at::Storage storage, c10::SymInt offset,
                    c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(
      self, storage, offset.guard_int(__FILE__, __LINE__), ints(size), ints(stride));
}

at::Scalar local_scalar(const Tensor& self) { return at::_local_scalar_dense(on_host(self)); }

// ---- Operators -------------------------------------------------------------------------------

void refuse(const c10::OperatorHandle& op, const std::string& argument, const std::string& what) {
  TORCH_CHECK(false, "expected all tensors to be on the same device: ", op.schema().name(),
              " on standin has the argument `", argument, "` ", what, " the CPU");
}

// As with CUDA, a tensor without dimensions may be on the CPU, and so may the indices of indexing.
void check(const c10::OperatorHandle& op, const std::string& argument, const c10::IValue& value) {
  auto wrong = [](const Tensor& tensor) { return tensor.defined() && tensor.device().is_cpu(); };
  if (value.isTensor() && wrong(value.toTensor()) && value.toTensor().dim() > 0) {
    refuse(op, argument, "on");
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) {
      if (wrong(tensor)) refuse(op, argument, "with a tensor on");
    }
  } else if (value.isGenerator() && value.toGenerator().device().is_cpu()) {
    refuse(op, argument, "of");
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); i++) {
    check(op, arguments[i].name(), (*stack)[first + i]);
  }
  at::native::cpu_fallback(op, stack);
}

// Torch asks a device of its own for these, not for `convolution`.
Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                   bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  std::optional<Tensor> host_bias;
  if (bias && bias->defined()) host_bias = on_host(*bias);
  for (const Tensor& tensor : {input, weight, bias.value_or(input)}) {
    TORCH_CHECK(!tensor.defined() || !tensor.device().is_cpu(),
                "expected all tensors of a convolution on standin to be there");
  }
  return on_device(at::convolution(on_host(input), on_host(weight), host_bias, stride, padding,
                                   dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> needed) {
  at::IntArrayRef bias_size(weight.sizes().data(), 1);
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      on_host(gradient), on_host(input), on_host(weight), bias_size, stride, padding, dilation,
      transposed, output_padding, groups, needed);
  return {on_device(of_input), on_device(of_weight), on_device(of_bias)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("as_strided", TORCH_FN(as_strided));
  m.impl("view", TORCH_FN(view));
  m.impl("_reshape_alias", TORCH_FN(reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  // These have a decomposition for any device, which would be used instead.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("native_group_norm_backward", torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// A conjugate that is not yet computed is copied as it is: computing it would copy it first.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.def("set_memory_limit", [](size_t bytes) { allocator.limit = bytes; });
}
