// SPDX-License-Identifier: Apache-2.0
// The native side of the test bench: AXI4 memories and the trace log, called from SystemVerilog once a clock edge.
//
// Time. `cycle` is the number of the clock cycle that the calling edge ends; cycle 0 is the first out of reset. Inputs
// are the signals of that cycle, outputs those of the next.
//
// Model (MemoryModel in hw/spec/memory.py). Ports are independent, and each serves its requests in order.
//   reads   AR accepted in cycle t; request j has latency L = latency(port, j);
//           beat i is presented in cycle max(t + L + i, cycle in which the previous beat was taken + 1)
//           with HBM (the ports before the last, hbm.h): max(what it says, cycle in which the previous beat was taken + 1);
//           its time is that of the design's run, cycle 0 of which is known from trace_cycle
//   writes  B is presented in cycle max(last W beat's or AW's cycle, the later + write_latency, previous B taken + 1)
// A write reaches memory when its B is presented, a read takes its data when its beat is presented: a program that does
// not wait for B, or overwrites what it has not yet read, computes something else here.

#include <cinttypes>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hbm.h"
#include "svdpi.h"

namespace {

constexpr uint64_t BEAT_BYTES = 64;
constexpr uint64_t PAGE_BYTES = 64 * 1024;
constexpr uint32_t RESP_OKAY = 0, RESP_DECERR = 3;
constexpr uint64_t BOUNDARY_BYTES = 4096;  // AXI4 A3.4.1: no burst crosses it
constexpr int N_UNITS = 5;

[[noreturn]] void die(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("alula: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    std::exit(3);
}

struct FileCloser {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

// As hash32 in hw/spec/memory.py; tests/sim/test_harness.py holds the two together.
uint32_t hash32(uint32_t seed, uint32_t port, uint32_t request) {
    uint32_t x = seed * 0x9E3779B1u + port * 0x85EBCA77u + request * 0xC2B2AE3Du;
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ x >> 16;
}

// Bytes that were never written read as zero and cost nothing.
class SparseMemory {
   public:
    uint64_t size_bytes = 0;

    bool contains(uint64_t address, uint64_t length) const {
        return address <= size_bytes && length <= size_bytes - address;
    }
    void read(uint64_t address, uint8_t* target, uint64_t length) {
        while (length) {
            const uint64_t n = chunk(address, length);
            const uint8_t* page = find(address / PAGE_BYTES);
            if (page)
                std::memcpy(target, page + address % PAGE_BYTES, n);
            else
                std::memset(target, 0, n);
            address += n, target += n, length -= n;
        }
    }
    // The caller fills the chunk: `write` hands out (place, bytes) pairs so that files are read in place.
    template <typename Fill>
    void write(uint64_t address, uint64_t length, Fill fill) {
        while (length) {
            const uint64_t n = chunk(address, length);
            fill(make(address / PAGE_BYTES) + address % PAGE_BYTES, n);
            address += n, length -= n;
        }
    }

   private:
    std::unordered_map<uint64_t, std::unique_ptr<uint8_t[]>> pages_;
    uint64_t last_index_ = ~uint64_t{0};
    uint8_t* last_page_ = nullptr;

    static uint64_t chunk(uint64_t address, uint64_t length) {
        const uint64_t room = PAGE_BYTES - address % PAGE_BYTES;
        return length < room ? length : room;
    }
    uint8_t* find(uint64_t index) {
        if (index == last_index_) return last_page_;
        const auto found = pages_.find(index);
        if (found == pages_.end()) return nullptr;
        last_index_ = index;
        return last_page_ = found->second.get();
    }
    uint8_t* make(uint64_t index) {
        if (uint8_t* page = find(index)) return page;
        auto& page = pages_[index];
        page.reset(new uint8_t[PAGE_BYTES]());
        last_index_ = index;
        return last_page_ = page.get();
    }
};

struct Parameters {
    uint32_t read_latency = 1, write_latency = 1, jitter = 0, seed = 0;
    uint64_t max_cycles = 0;
    bool log_axi = false;
    std::unique_ptr<Hbm> hbm;
};

struct Read {
    uint64_t address, accepted, due;  // due: the earliest cycle of the beat that is next
    uint32_t index, beats, beat, response;
};
struct WriteAddress {
    uint64_t address, accepted;
    uint32_t beats;
};
struct WriteBeat {
    uint8_t data[BEAT_BYTES];
    uint64_t strobes, accepted;
    bool last;
};
struct Response {
    uint64_t due, accepted;
    uint32_t index, response;
    uint64_t address;
    std::vector<WriteBeat> beats;
};
struct AxiRecord {  // as sim/rtl/run.py reads it
    uint32_t port, kind, index, beats;
    uint64_t address, accepted, first, last;
};
struct Statistics {
    uint64_t reads = 0, read_beats = 0, writes = 0, write_beats = 0, write_bytes = 0;
};

struct Bench;
Bench& bench();

class Port {
   public:
    Port() = default;
    Port(Port&&) = default;

    SparseMemory memory;
    Statistics statistics;
    std::map<uint32_t, uint32_t> read_faults, write_faults;  // request number -> response

    void begin(uint64_t cycle, uint64_t run_cycle);
    void accept_read(int port, uint64_t cycle, uint64_t address, uint32_t beats);
    void accept_write_address(uint64_t cycle, uint64_t address, uint32_t beats);
    void accept_write_beat(uint64_t cycle, const svBitVecVal* data, uint64_t strobes, bool last);
    void step_reads(int port, uint64_t cycle, bool ready);
    void step_writes(int port, uint64_t cycle, bool ready);

    bool read_valid = false, response_valid = false;
    uint32_t read_response() const { return reads_.front().response; }
    bool read_last() const { return reads_.front().beat + 1 == reads_.front().beats; }
    void read_data(uint8_t* target);
    uint32_t response() const { return responses_.front().response; }
    bool idle() const { return reads_.empty() && responses_.empty(); }

   private:
    std::deque<Read> reads_;
    std::deque<WriteAddress> addresses_;
    std::deque<WriteBeat> beats_;
    std::deque<Response> responses_;
    std::unique_ptr<PseudoChannel> channel_;  // none: the latency is fixed
    uint64_t began_ = 0;                      // bench cycle of the run's cycle 0
    uint64_t first_beat_ = 0;
    uint32_t n_write_requests_ = 0;

    void match_write();
    bool beat_ready(uint64_t cycle);
    void commit(const Response& response);
};

struct DumpRange {
    uint32_t port;
    uint64_t address, length;
};
struct TraceRecord {  // as sim/rtl/run.py reads it
    uint32_t unit, tag;
    uint64_t start, done;
};

struct Bench {
    std::string folder;
    Parameters parameters;
    std::vector<Port> ports;
    std::vector<DumpRange> dumps;
    std::deque<std::pair<uint32_t, uint64_t>> started[N_UNITS];
    uint64_t traced_run = 0;  // the bench's cycle in which the run began that is traced
    File trace, axi;
    std::string error;
    uint64_t cycle = 0;

    void fail(const std::string& message) {
        if (error.empty()) error = "cycle " + std::to_string(cycle) + ": " + message;
    }
    File open(const char* name, const char* mode) {
        File file(std::fopen((folder + "/" + name).c_str(), mode));
        if (!file) die("cannot open %s in the run's folder", name);
        return file;
    }
};
Bench& bench() {
    static Bench instance;
    return instance;
}

// A request comes in a run that may be a new one: channels begin as they are at the start of a run.
void Port::begin(uint64_t cycle, uint64_t run_cycle) {
    if (channel_ && (began_ == cycle - run_cycle || !reads_.empty())) return;
    began_ = cycle - run_cycle;
    channel_ = std::make_unique<PseudoChannel>(*bench().parameters.hbm);
}

void Port::accept_read(int port, uint64_t cycle, uint64_t address, uint32_t beats) {
    const Parameters& p = bench().parameters;
    const uint32_t index = static_cast<uint32_t>(statistics.reads++);
    const uint32_t extra = p.jitter ? hash32(p.seed, port, index) % (p.jitter + 1) : 0;
    uint32_t response = memory.contains(address, beats * BEAT_BYTES) ? RESP_OKAY : RESP_DECERR;
    if (const auto fault = read_faults.find(index); fault != read_faults.end()) response = fault->second;
    reads_.push_back({address, cycle, cycle + p.read_latency + extra, index, beats, 0, response});
    if (!channel_) return;
    for (uint32_t i = 0; i < beats; i++)
        channel_->asked.push_back({int64_t(address / BEAT_BYTES + i), int64_t(cycle - began_), extra});
}

// Whether the next beat is on the bus in the cycle after this one.
bool Port::beat_ready(uint64_t cycle) {
    if (!channel_) return !reads_.empty() && reads_.front().due <= cycle + 1;
    channel_->serve(int64_t(cycle - began_));
    if (channel_->arrivals.empty() || began_ + uint64_t(channel_->arrivals.front()) > cycle + 1) return false;
    channel_->arrivals.pop_front();
    return true;
}

void Port::step_reads(int port, uint64_t cycle, bool ready) {
    if (read_valid && ready) {
        Read& read = reads_.front();
        statistics.read_beats++;
        if (read.beat == 0) first_beat_ = cycle;
        read.beat++, read.due++;
        if (read.beat == read.beats) {
            if (bench().axi) {
                const AxiRecord record{uint32_t(port), 0, read.index, read.beats, read.address, read.accepted,
                                       first_beat_, cycle};
                std::fwrite(&record, sizeof record, 1, bench().axi.get());
            }
            reads_.pop_front();
        }
        read_valid = false;
    }
    if (!read_valid) read_valid = beat_ready(cycle);
}

void Port::read_data(uint8_t* target) {
    const Read& read = reads_.front();
    if (read.response == RESP_OKAY)
        memory.read(read.address + read.beat * BEAT_BYTES, target, BEAT_BYTES);
    else
        std::memset(target, 0, BEAT_BYTES);
}

void Port::accept_write_address(uint64_t cycle, uint64_t address, uint32_t beats) {
    addresses_.push_back({address, cycle, beats});
    match_write();
}

void Port::accept_write_beat(uint64_t cycle, const svBitVecVal* data, uint64_t strobes, bool last) {
    WriteBeat& beat = beats_.emplace_back();
    std::memcpy(beat.data, data, BEAT_BYTES);
    beat.strobes = strobes, beat.accepted = cycle, beat.last = last;
    statistics.write_beats++;
    statistics.write_bytes += __builtin_popcountll(strobes);
    match_write();
}

// Data may come before its address (AXI4 A3.3.1); a burst is complete when both have.
void Port::match_write() {
    if (addresses_.empty() || beats_.size() < addresses_.front().beats) return;
    const WriteAddress burst = addresses_.front();
    addresses_.pop_front();
    Response r;
    r.beats.assign(beats_.begin(), beats_.begin() + burst.beats);
    beats_.erase(beats_.begin(), beats_.begin() + burst.beats);
    for (uint32_t i = 0; i < burst.beats; i++)
        if (r.beats[i].last != (i + 1 == burst.beats)) bench().fail("wlast does not agree with awlen");
    r.index = n_write_requests_++;
    r.address = burst.address;
    r.accepted = burst.accepted > r.beats.back().accepted ? burst.accepted : r.beats.back().accepted;
    r.due = r.accepted + bench().parameters.write_latency;
    r.response = memory.contains(burst.address, burst.beats * BEAT_BYTES) ? RESP_OKAY : RESP_DECERR;
    if (const auto fault = write_faults.find(r.index); fault != write_faults.end()) r.response = fault->second;
    statistics.writes++;
    for (uint32_t i = 0; channel_ && i < r.beats.size(); i++) {
        const uint64_t strobes = r.beats[i].strobes;
        const int64_t words = (strobes << 32 != 0) | (strobes >> 32 != 0) << 1;
        channel_->writes.push_back({int64_t(r.accepted - began_), int64_t(r.address / BEAT_BYTES + i), words});
    }
    responses_.push_back(std::move(r));
}

void Port::commit(const Response& response) {
    if (response.response != RESP_OKAY) return;
    for (uint32_t i = 0; i < response.beats.size(); i++) {
        const WriteBeat& beat = response.beats[i];
        memory.write(response.address + i * BEAT_BYTES, BEAT_BYTES, [&](uint8_t* place, uint64_t) {
            if (beat.strobes == ~uint64_t{0})
                std::memcpy(place, beat.data, BEAT_BYTES);
            else
                for (uint64_t b = 0; b < BEAT_BYTES; b++)
                    if (beat.strobes >> b & 1) place[b] = beat.data[b];
        });
    }
}

void Port::step_writes(int port, uint64_t cycle, bool ready) {
    if (response_valid && ready) {
        const Response& r = responses_.front();
        if (bench().axi) {
            const AxiRecord record{uint32_t(port), 1, r.index, uint32_t(r.beats.size()), r.address, r.accepted,
                                   cycle, cycle};
            std::fwrite(&record, sizeof record, 1, bench().axi.get());
        }
        responses_.pop_front();
        response_valid = false;
    }
    if (!response_valid && !responses_.empty() && responses_.front().due <= cycle + 1) {
        response_valid = true;
        commit(responses_.front());
    }
}

void check_burst(const char* channel, int port, uint64_t address, uint32_t length, uint32_t size, uint32_t burst) {
    const uint64_t bytes = (uint64_t{length} + 1) * BEAT_BYTES;
    char text[160];
    const auto report = [&](const char* what) {
        std::snprintf(text, sizeof text, "port %d %s addr 0x%" PRIx64 " len %u: %s", port, channel, address, length + 1,
                      what);
        bench().fail(text);
    };
    if (size != 6) report("size is not 6 (64 bytes a beat)");
    if (burst != 1) report("burst is not INCR");
    if (address % BEAT_BYTES) report("address is not a multiple of 64 bytes");
    if (address % BOUNDARY_BYTES + bytes > BOUNDARY_BYTES) report("the burst crosses a 4 KiB boundary");
}

// The line's `n` parameters, as `parameters` in hw/spec/hbm.py gives them.
void load_hbm(uint64_t n, std::FILE* file) {
    std::vector<int64_t> values(n);
    for (int64_t& value : values)
        if (std::fscanf(file, "%" SCNd64, &value) != 1) die("native.txt: bad value of hbm");
    if (n != HBM_PARAMETERS) die("native.txt: %" PRIu64 " parameters of hbm, not %d", n, HBM_PARAMETERS);
    bench().parameters.hbm = std::make_unique<Hbm>();
    std::memcpy(bench().parameters.hbm.get(), values.data(), sizeof(Hbm));
}

void load_setup() {
    Bench& b = bench();
    File file = b.open("native.txt", "r");
    char key[32];
    while (std::fscanf(file.get(), "%31s", key) == 1) {
        const std::string name = key;
        uint64_t v[4] = {};
        const int wanted = name == "fault" ? 4 : name == "dump" ? 3 : name == "size" ? 2 : 1;
        for (int i = 0; i < wanted; i++)
            if (std::fscanf(file.get(), "%" SCNu64, &v[i]) != 1) die("native.txt: bad value of %s", key);
        if ((name == "size" || name == "fault" || name == "dump") && v[0] >= b.ports.size())
            die("native.txt: %s names port %" PRIu64 ", the design has %zu", key, v[0], b.ports.size());
        if (name == "size") b.ports[v[0]].memory.size_bytes = v[1];
        else if (name == "read_latency") b.parameters.read_latency = v[0];
        else if (name == "write_latency") b.parameters.write_latency = v[0];
        else if (name == "jitter") b.parameters.jitter = v[0];
        else if (name == "seed") b.parameters.seed = v[0];
        else if (name == "max_cycles") b.parameters.max_cycles = v[0];
        else if (name == "hbm") load_hbm(v[0], file.get());
        else if (name == "log_axi") b.parameters.log_axi = v[0];
        else if (name == "fault") (v[1] ? b.ports[v[0]].write_faults : b.ports[v[0]].read_faults)[v[2]] = v[3];
        else if (name == "dump") b.dumps.push_back({uint32_t(v[0]), v[1], v[2]});
        else die("native.txt: unknown key %s", key);
    }
}

void load_image() {
    Bench& b = bench();
    File file = b.open("image.bin", "rb");
    uint64_t head[3];  // port, address, length
    while (std::fread(head, sizeof head, 1, file.get()) == 1) {
        if (head[0] >= b.ports.size() || !b.ports[head[0]].memory.contains(head[1], head[2]))
            die("image: port %" PRIu64 " address 0x%" PRIx64 " length %" PRIu64 " is outside of the memory", head[0],
                head[1], head[2]);
        b.ports[head[0]].memory.write(head[1], head[2], [&](uint8_t* place, uint64_t n) {
            if (std::fread(place, n, 1, file.get()) != 1) die("image: truncated");
        });
    }
}

void write_dumps() {
    Bench& b = bench();
    File file = b.open("dump.bin", "wb");
    std::vector<uint8_t> buffer(PAGE_BYTES);
    for (const DumpRange& range : b.dumps)
        for (uint64_t done = 0; done < range.length; done += PAGE_BYTES) {
            const uint64_t n = range.length - done < PAGE_BYTES ? range.length - done : PAGE_BYTES;
            b.ports[range.port].memory.read(range.address + done, buffer.data(), n);
            std::fwrite(buffer.data(), n, 1, file.get());
        }
}

void write_summary() {
    Bench& b = bench();
    File file = b.open("summary.txt", "w");
    std::fprintf(file.get(), "cycles %" PRIu64 "\n", b.cycle + 1);
    for (const Port& port : b.ports) {
        const Statistics& s = port.statistics;
        std::fprintf(file.get(), "port %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", s.reads,
                     s.read_beats, s.writes, s.write_beats, s.write_bytes);
    }
    if (!b.error.empty()) std::fprintf(file.get(), "error %s\n", b.error.c_str());
}

void write_trace(uint32_t unit, uint32_t tag, uint64_t start, uint64_t done) {
    const TraceRecord record{unit, tag, start, done};
    std::fwrite(&record, sizeof record, 1, bench().trace.get());
}

// Writes what is open as without an end.
void close_trace() {
    for (uint32_t unit = 0; unit < N_UNITS; unit++) {
        for (const auto& [tag, start] : bench().started[unit]) write_trace(unit, tag, start, ~uint64_t{0});
        bench().started[unit].clear();
    }
}

}  // namespace

extern "C" {

// Returns the largest number of cycles the run may take.
uint64_t alula_open(int n_ports) {
    Bench& b = bench();
    const char* folder = std::getenv("ALULA_RUN_DIR");
    if (!folder) die("ALULA_RUN_DIR is not set: start the simulation by sim.rtl.run");
    b.folder = folder;
    b.ports.resize(n_ports);
    load_setup();
    load_image();
    b.trace = b.open("trace.bin", "wb");
    if (b.parameters.log_axi) b.axi = b.open("axi.bin", "wb");
    return b.parameters.max_cycles;
}

// run_cycle: the design's own count. flags: bit 0 arvalid, 1 awvalid, 2 rready, 3 bready; attributes: size[2:0] burst[4:3] of AR, the same of AW from bit 5 on.
// Result: bit 0 rvalid, 1 rlast, 3:2 rresp, 4 bvalid, 6:5 bresp, 7 busy, 8 error.
uint32_t alula_step(int index, uint64_t cycle, uint64_t run_cycle, uint32_t flags, uint32_t attributes, uint64_t araddr,
                    uint32_t arlen, uint64_t awaddr, uint32_t awlen) {
    Bench& b = bench();
    Port& port = b.ports[index];
    b.cycle = cycle;
    if ((flags & 3) && b.parameters.hbm && &port != &b.ports.back()) port.begin(cycle, run_cycle);
    if (flags & 1) {
        check_burst("AR", index, araddr, arlen, attributes & 7, attributes >> 3 & 3);
        port.accept_read(index, cycle, araddr, arlen + 1);
    }
    if (flags & 2) {
        check_burst("AW", index, awaddr, awlen, attributes >> 5 & 7, attributes >> 8 & 3);
        port.accept_write_address(cycle, awaddr, awlen + 1);
    }
    port.step_reads(index, cycle, flags >> 2 & 1);
    port.step_writes(index, cycle, flags >> 3 & 1);
    uint32_t result = 0;
    if (port.read_valid) result |= 1u | uint32_t(port.read_last()) << 1 | port.read_response() << 2;
    if (port.response_valid) result |= 1u << 4 | port.response() << 5;
    return result | uint32_t(!port.idle()) << 7 | uint32_t(!b.error.empty()) << 8;
}

void alula_write_beat(int index, uint64_t cycle, const svBitVecVal* data, uint64_t strobes, uint32_t last) {
    bench().cycle = cycle;
    bench().ports[index].accept_write_beat(cycle, data, strobes, last);
}

// The data of the beat that `alula_step` has just presented.
void alula_read_beat(int index, svBitVecVal* data) {
    bench().ports[index].read_data(reinterpret_cast<uint8_t*>(data));
}

// Starts and ends of a unit match in order; the tag is that of the start. Times are the run's; what is open when another
// run begins was under way when the one before ended in an error.
void alula_trace(uint32_t starts, uint32_t dones, uint64_t cycle, uint64_t run_cycle, const svBitVecVal* tags) {
    if (bench().traced_run != cycle - run_cycle) close_trace();
    bench().traced_run = cycle - run_cycle;
    for (int unit = 0; unit < N_UNITS; unit++) {
        auto& started = bench().started[unit];
        if (starts >> unit & 1) started.emplace_back(tags[unit], run_cycle);
        if (!(dones >> unit & 1)) continue;
        if (started.empty()) {
            bench().fail("trace: unit " + std::to_string(unit) + " is done without a start");
            continue;
        }
        write_trace(unit, started.front().first, started.front().second, run_cycle);
        started.pop_front();
    }
}

// What native/axi_guard.sv found.
void alula_violation(int index, uint64_t cycle, const char* what) {
    bench().cycle = cycle;
    bench().fail("port " + std::to_string(index) + " " + what);
}

void alula_close(uint64_t cycle) {
    Bench& b = bench();
    if (!b.trace) return;
    b.cycle = cycle;
    close_trace();
    b.trace.reset();
    b.axi.reset();
    write_dumps();
    write_summary();
}

}  // extern "C"
