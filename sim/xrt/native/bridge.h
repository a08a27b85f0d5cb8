// The bridge's C interface over a vendor's C++ library: `open_card` is each library's own (xrt.cpp, slash.cpp).
//
// Every function returns the text of what went wrong, or null. The text lives until the next call of the thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// Device memory behind one port.
class Memory {
public:
    virtual ~Memory() = default;
    virtual uint64_t address() const = 0;
    virtual void write(uint64_t offset, const void *data, uint64_t size) = 0;
    virtual void read(uint64_t offset, void *data, uint64_t size) = 0;
};

// A loaded kernel.
class Card {
public:
    virtual ~Card() = default;
    virtual uint32_t read_register(uint32_t offset) = 0;
    virtual void write_register(uint32_t offset, uint32_t value) = 0;
    // `name` is the kernel's port, such as m03_axi.
    virtual std::unique_ptr<Memory> allocate(uint32_t port, const std::string &name, uint64_t size) = 0;

    // Goes with the card, before the device does: a derived class clears it in its destructor.
    std::vector<std::unique_ptr<Memory>> memories;
};

// What is opened: `kernel` and `instance` are names in the container, argument `first_pointer` is port 0's address.
struct Request {
    std::string device, image, kernel, instance;
    uint32_t first_pointer, n_ports;
};

std::unique_ptr<Card> open_card(const Request &request);

template <typename Work> const char *guarded(Work work) {
    thread_local std::string wrong;
    try {
        work();
        return nullptr;
    } catch (const std::exception &error) {
        wrong = error.what();
    } catch (...) {
        wrong = "an exception that is no std::exception";
    }
    return wrong.c_str();
}

extern "C" {
const char *alula_open(const char *device, const char *image, const char *kernel, const char *instance,
                       uint32_t first_pointer, uint32_t n_ports, Card **card) {
    return guarded([&] { *card = open_card({device, image, kernel, instance, first_pointer, n_ports}).release(); });
}

const char *alula_close(Card *card) {
    return guarded([&] { delete card; });
}

const char *alula_read_register(Card *card, uint32_t offset, uint32_t *value) {
    return guarded([&] { *value = card->read_register(offset); });
}

const char *alula_write_register(Card *card, uint32_t offset, uint32_t value) {
    return guarded([&] { card->write_register(offset, value); });
}

const char *alula_allocate(Card *card, uint32_t port, const char *name, uint64_t size, Memory **memory,
                           uint64_t *address) {
    return guarded([&] {
        card->memories.push_back(card->allocate(port, name, size));
        *memory = card->memories.back().get();
        *address = (*memory)->address();
    });
}

const char *alula_write(Memory *memory, uint64_t offset, const void *data, uint64_t size) {
    return guarded([&] { memory->write(offset, data, size); });
}

const char *alula_read(Memory *memory, uint64_t offset, void *data, uint64_t size) {
    return guarded([&] { memory->read(offset, data, size); });
}
}
