// A card whose kernel is done after some polls, and then has added 1 to byte 5 of its last memory port.
//
// What stands behind the stand-ins of XRT and SLASH. A test reaches it through the C functions at the end.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace machine {

constexpr uint32_t CTRL = 0, START = 1, DONE = 2, IDLE = 4;

struct State {
    std::map<uint32_t, uint32_t> registers{{CTRL, IDLE}}, after; // `after`: what a finished run leaves
    uint32_t polls = 3, left = 0, aux_base = 0;
    uint64_t shift = 0; // added to every address: memory off its page
    std::string opened;
    std::map<uint64_t, std::vector<uint8_t>> memory; // by address
    bool taken = false;
};

inline State state;

inline uint8_t &byte_at(uint64_t address) {
    auto found = --state.memory.upper_bound(address);
    return found->second.at(address - found->first);
}

inline uint32_t read(uint32_t offset) {
    if (offset != CTRL || !state.left)
        return state.registers[offset];
    if (--state.left)
        return START;
    const uint64_t aux = state.registers[state.aux_base] | uint64_t(state.registers[state.aux_base + 4]) << 32;
    ++byte_at(aux + 5);
    for (auto &[at, value] : state.after)
        state.registers[at] = value;
    return DONE | IDLE;
}

inline void write(uint32_t offset, uint32_t value) {
    if (offset == CTRL)
        state.left = state.polls;
    else
        state.registers[offset] = value;
}

// New device memory, zero; its address.
inline uint64_t allocate(uint64_t address, uint64_t size) {
    state.memory[address + state.shift].resize(size);
    return address + state.shift;
}

} // namespace machine

extern "C" {
void machine_reset() { machine::state = {}; }
void machine_polls(uint32_t polls) { machine::state.polls = polls; }
void machine_shift(uint64_t bytes) { machine::state.shift = bytes; }
void machine_aux_base(uint32_t offset) { machine::state.aux_base = offset; }
void machine_set(uint32_t offset, uint32_t value) { machine::state.registers[offset] = value; }
void machine_leaves(uint32_t offset, uint32_t value) { machine::state.after[offset] = value; }
uint32_t machine_register(uint32_t offset) { return machine::state.registers[offset]; }
uint8_t machine_byte(uint64_t address) { return machine::byte_at(address); }
const char *machine_opened() { return machine::state.opened.c_str(); }
}
