// Stand-in for SLASH's header: what the bridge uses of it, and no more.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include <vrtd/device.hpp>

namespace vrt {

enum class BufferAllocType : uint32_t { Ddr, Hbm, HbmVnoc };
enum class BufferAllocDir : uint32_t { Bidirectional, HostToDevice, DeviceToHost };
enum class MemoryRangeType { HBM, DDR, HBM_VNOC };
enum class HBMRegion : uint64_t { HBM0 = 0, NON_HBM = std::numeric_limits<uint64_t>::max() };

struct MemoryConfig {
    MemoryRangeType type;
    std::optional<uint8_t> hbmPort;
};

class UntypedBuffer {
public:
    UntypedBuffer(uint64_t address, uint64_t size) : address_(address), host_(size) {}
    uint64_t getPhysAddr() const noexcept { return address_; }
    void *data() const noexcept { return const_cast<uint8_t *>(host_.data()); }
    void syncToDevice(uint64_t offset, uint64_t size);
    void syncToHost(uint64_t offset, uint64_t size);

private:
    uint64_t address_;
    std::vector<uint8_t> host_;
};

class Block {
public:
    explicit Block(UntypedBuffer buffer) : buffer_(std::make_unique<UntypedBuffer>(std::move(buffer))) {}
    UntypedBuffer *getUntypedBuffer() const noexcept { return buffer_.get(); }

private:
    std::unique_ptr<UntypedBuffer> buffer_;
};

class Allocator {
public:
    std::unique_ptr<Block> allocate(vrtd::Device &device, BufferAllocType type, BufferAllocDir direction,
                                    uint64_t size, HBMRegion region = HBMRegion::NON_HBM);
    void deallocate(std::unique_ptr<Block> block);
};

} // namespace vrt
