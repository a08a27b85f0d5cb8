// Stand-in for libxrt_coreutil: one card, number 1, whose memory group 40 + p is behind port p.
#include "machine.h"

#include <xrt/experimental/xrt_ip.h>
#include <xrt/xrt_bo.h>
#include <xrt/xrt_kernel.h>

namespace xrt {

device::device(unsigned int index) {
    if (index != 1)
        throw std::runtime_error("No such device with index '" + std::to_string(index) + "'");
}

uuid device::load_xclbin(const std::string &path) {
    machine::state.opened = path;
    return {};
}

kernel::kernel(const device &, const uuid &, const std::string &) { machine::state.taken = true; }
kernel::~kernel() { machine::state.taken = false; }
int kernel::group_id(int argument) const { return 40 + argument; }

ip::ip(const device &, const uuid &, const std::string &name) {
    if (machine::state.taken)
        throw std::runtime_error("the compute unit is in use: xrt::ip wants it for itself");
    machine::state.opened += " " + name;
}

void ip::write_register(uint32_t offset, uint32_t data) { machine::write(offset, data); }
uint32_t ip::read_register(uint32_t offset) const { return machine::read(offset); }

bo::bo(const device &, size_t size, flags, memory_group group)
    : address_(machine::allocate(0x1234500000ull + (uint64_t(group) << 32), size)), host_(size) {}

uint64_t bo::address() const { return address_; }
void bo::write(const void *data, size_t size, size_t seek) { std::memcpy(&host_.at(seek), data, size); }
void bo::read(void *data, size_t size, size_t skip) { std::memcpy(data, &host_.at(skip), size); }

void bo::sync(xclBOSyncDirection direction, size_t size, size_t offset) {
    for (size_t at = offset; at < offset + size; ++at) {
        if (direction == XCL_BO_SYNC_BO_TO_DEVICE)
            machine::byte_at(address_ + at) = host_.at(at);
        else
            host_.at(at) = machine::byte_at(address_ + at);
    }
}

} // namespace xrt
