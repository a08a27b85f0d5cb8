// Stand-in for libvrt: one V80 at 01:00. The last port of the kernel, m02_axi, is on DDR, the others each on an HBM
// channel. The daemon gives at most 512 MiB at once, at the lowest free address.
#include "machine.h"

#include <vrt/kernel.hpp>

namespace vrt {

namespace {
constexpr uint64_t REGION = 512ull << 20, HBM = 0x4000000000ull, DDR = 0x60000000000ull;
} // namespace

Device::Device(const std::string &bdf, const std::string &vrtbin) : handle_(std::make_shared<impl::Device>()) {
    if (bdf != "01:00")
        throw std::runtime_error("no device at " + bdf);
    machine::state.opened = vrtbin;
}

Platform Device::getPlatform() {
    return machine::state.opened.find("sim") == std::string::npos ? Platform::HARDWARE : Platform::SIMULATION;
}

void Device::cleanup() {}

Kernel::Kernel(Device, const std::string &name) { machine::state.opened += " " + name; }
void Kernel::write(uint32_t offset, uint32_t value) { machine::write(offset, value); }
uint32_t Kernel::read(uint32_t offset) { return machine::read(offset); }

MemoryConfig Kernel::portMemoryConfig(std::string_view port) const {
    if (port == "m02_axi")
        return {MemoryRangeType::DDR, std::nullopt};
    if (port == "m00_axi" || port == "m01_axi")
        return {MemoryRangeType::HBM, static_cast<uint8_t>(port[2] - '0')};
    throw std::runtime_error("Kernel has no memory connection for port '" + std::string(port) + "'");
}

std::unique_ptr<Block> Allocator::allocate(vrtd::Device &, BufferAllocType type, BufferAllocDir, uint64_t size,
                                           HBMRegion region) {
    if (size > REGION)
        throw std::runtime_error("failed to open buffer: Invalid argument");
    uint64_t at = type == BufferAllocType::Ddr ? DDR : HBM + REGION * static_cast<uint64_t>(region);
    while (machine::state.memory.count(at + machine::state.shift))
        at += REGION;
    return std::make_unique<Block>(UntypedBuffer(machine::allocate(at, size), size));
}

void Allocator::deallocate(std::unique_ptr<Block> block) {
    machine::state.memory.erase(block->getUntypedBuffer()->getPhysAddr());
}

void UntypedBuffer::syncToDevice(uint64_t offset, uint64_t size) {
    for (uint64_t at = offset; at < offset + size; ++at)
        machine::byte_at(address_ + at) = host_.at(at);
}

void UntypedBuffer::syncToHost(uint64_t offset, uint64_t size) {
    for (uint64_t at = offset; at < offset + size; ++at)
        host_.at(at) = machine::byte_at(address_ + at);
}

} // namespace vrt
