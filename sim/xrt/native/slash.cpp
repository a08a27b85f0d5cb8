// SLASH (Alveo V80): registers by vrt::Kernel, memory by the allocator below vrt::Buffer.
//
// vrt::Buffer moves a buffer as a whole; the host asks for a few bytes of hundreds of megabytes after each run. Blocks
// of the allocator move any part. Forms: Xilinx/SLASH, commit 26f9c55, vrt/include/vrt.
#include "bridge.h"

#include <algorithm>

#include <vrt/allocator/allocator.hpp>
#include <vrt/device.hpp>
#include <vrt/kernel.hpp>

namespace {

constexpr uint64_t REGION_BYTES = 512ull << 20; // the daemon gives no larger block (vrt/vrtd/src/allocator.h)

// One or more blocks whose addresses follow each other.
class SlashMemory : public Memory {
public:
    SlashMemory(const vrt::Device &of, uint64_t size, const vrt::MemoryConfig &place) : device(of) {
        const bool ddr = place.type == vrt::MemoryRangeType::DDR;
        const auto region = place.hbmPort ? static_cast<vrt::HBMRegion>(*place.hbmPort) : vrt::HBMRegion::NON_HBM;
        if (!ddr && !place.hbmPort)
            throw std::runtime_error("a port is connected to neither DDR nor one HBM channel: build the vbin again");
        auto &handle = *device.getHandle();
        for (uint64_t at = 0; at < size; at += REGION_BYTES) {
            blocks.push_back(handle.getAllocator()->allocate(
                handle.getVrtdDevice(), ddr ? vrt::BufferAllocType::Ddr : vrt::BufferAllocType::Hbm,
                vrt::BufferAllocDir::Bidirectional, std::min(size - at, REGION_BYTES), region));
            if (view(at).getPhysAddr() != address() + at)
                throw std::runtime_error("device memory is in pieces: end other programs that use the card");
        }
    }

    ~SlashMemory() override {
        for (auto &block : blocks)
            device.getHandle()->getAllocator()->deallocate(std::move(block));
    }

    uint64_t address() const override { return blocks.front()->getUntypedBuffer()->getPhysAddr(); }

    void write(uint64_t offset, const void *data, uint64_t size) override {
        parts(offset, size, [&](vrt::UntypedBuffer &block, uint64_t at, uint64_t done, uint64_t n) {
            std::memcpy(static_cast<char *>(block.data()) + at, static_cast<const char *>(data) + done, n);
            block.syncToDevice(at, n);
        });
    }

    void read(uint64_t offset, void *data, uint64_t size) override {
        parts(offset, size, [&](vrt::UntypedBuffer &block, uint64_t at, uint64_t done, uint64_t n) {
            block.syncToHost(at, n);
            std::memcpy(static_cast<char *>(data) + done, static_cast<const char *>(block.data()) + at, n);
        });
    }

private:
    vrt::UntypedBuffer &view(uint64_t offset) { return *blocks.at(offset / REGION_BYTES)->getUntypedBuffer(); }

    // Calls work(block, offset in it, bytes before, bytes) for each block that a range touches.
    template <typename Work> void parts(uint64_t offset, uint64_t size, Work work) {
        for (uint64_t done = 0; done < size;) {
            const uint64_t at = (offset + done) % REGION_BYTES, n = std::min(size - done, REGION_BYTES - at);
            work(view(offset + done), at, done, n);
            done += n;
        }
    }

    vrt::Device device;
    std::vector<std::unique_ptr<vrt::Block>> blocks;
};

class SlashCard : public Card {
public:
    explicit SlashCard(const Request &request) : device(request.device, request.image), kernel(open(request)) {}

    ~SlashCard() override {
        memories.clear();
        device.cleanup();
    }

    uint32_t read_register(uint32_t offset) override { return kernel.read(offset); }

    void write_register(uint32_t offset, uint32_t value) override { kernel.write(offset, value); }

    std::unique_ptr<Memory> allocate(uint32_t, const std::string &name, uint64_t size) override {
        return std::make_unique<SlashMemory>(device, size, kernel.portMemoryConfig(name));
    }

private:
    vrt::Kernel open(const Request &request) {
        if (device.getPlatform() != vrt::Platform::HARDWARE)
            throw std::runtime_error("the vbin is for SLASH's simulation: give one that was built with --target hw");
        return vrt::Kernel(device, request.instance);
    }

    vrt::Device device;
    vrt::Kernel kernel;
};

} // namespace

std::unique_ptr<Card> open_card(const Request &request) { return std::make_unique<SlashCard>(request); }
