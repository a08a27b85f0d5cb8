// XRT: registers by xrt::ip, which has what pyxrt lost after 2.14; memory by xrt::bo.
#include "bridge.h"

#include <xrt/xrt_bo.h>
#include <xrt/xrt_device.h>
#include <xrt/xrt_kernel.h>
#if __has_include(<xrt/experimental/xrt_ip.h>)
#include <xrt/experimental/xrt_ip.h>
#else // XRT 2.14 to 2.16
#include <experimental/xrt_ip.h>
#endif

namespace {

class XrtMemory : public Memory {
public:
    XrtMemory(const xrt::device &device, uint64_t size, xrt::memory_group group)
        : buffer(device, size, xrt::bo::flags::normal, group) {}

    uint64_t address() const override { return buffer.address(); }

    void write(uint64_t offset, const void *data, uint64_t size) override {
        buffer.write(data, size, offset);
        buffer.sync(XCL_BO_SYNC_BO_TO_DEVICE, size, offset);
    }

    void read(uint64_t offset, void *data, uint64_t size) override {
        buffer.sync(XCL_BO_SYNC_BO_FROM_DEVICE, size, offset);
        buffer.read(data, size, offset);
    }

private:
    xrt::bo buffer;
};

class XrtCard : public Card {
public:
    explicit XrtCard(const Request &request) : device(static_cast<unsigned int>(std::stoul(request.device))) {
        const auto uuid = device.load_xclbin(request.image);
        const auto unit = request.kernel + ":{" + request.instance + "}";
        {
            // Only the kernel tells memory groups, and xrt::ip wants the unit for itself: the kernel goes first.
            const xrt::kernel kernel(device, uuid, unit);
            for (uint32_t port = 0; port < request.n_ports; ++port)
                groups.push_back(kernel.group_id(static_cast<int>(request.first_pointer + port)));
        }
        ip = xrt::ip(device, uuid, unit);
    }

    ~XrtCard() override { memories.clear(); }

    uint32_t read_register(uint32_t offset) override { return ip.read_register(offset); }

    void write_register(uint32_t offset, uint32_t value) override { ip.write_register(offset, value); }

    std::unique_ptr<Memory> allocate(uint32_t port, const std::string &, uint64_t size) override {
        return std::make_unique<XrtMemory>(device, size, static_cast<xrt::memory_group>(groups.at(port)));
    }

private:
    xrt::device device;
    std::vector<int> groups;
    xrt::ip ip;
};

} // namespace

std::unique_ptr<Card> open_card(const Request &request) { return std::make_unique<XrtCard>(request); }
