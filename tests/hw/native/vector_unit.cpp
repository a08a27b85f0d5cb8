// Runs passes back to back on a verilated vector unit of 16 lanes; AB and PB are here, writes to SB and OB are listed.
// READ_LATENCY: cycles from a read of AB or PB to its data. Cycles count from the instruction's start, a cycle before the
// unit sees it.
// in: u32 n_ab, n_pb (words), n_passes; the words; the descriptors (30 u32). out: text.
#include <cstdint>
#include <cstdio>
#include <deque>
#include <vector>
#include "Vvector_unit.h"

static uint32_t get() { uint32_t x = 0; if (fread(&x, 4, 1, stdin) != 1) x = 0; return x; }

int main() {
    const int lanes = 16, fields = 30;
    uint32_t sizes[2] = {get(), get()}, n_passes = get();
    std::vector<uint32_t> memory[2];
    for (int b = 0; b < 2; b++) for (uint32_t i = 0; i < sizes[b] * lanes; i++) memory[b].push_back(get());
    Vvector_unit dut;
    dut.clk = 0; dut.rst = 1; dut.unit___05Fstart = 0;
    struct Read { bool en; uint32_t at; };
    std::deque<Read> reads[2] = {std::deque<Read>(READ_LATENCY - 1), std::deque<Read>(READ_LATENCY - 1)};
    auto tick = [&]() {
        reads[0].push_back({(bool)dut.ab___05Fen, dut.ab___05Faddr});
        reads[1].push_back({(bool)dut.pb___05Fen, dut.pb___05Faddr});
        dut.clk = 1; dut.eval();
        for (int b = 0; b < 2; b++) {
            Read read = reads[b].front();
            reads[b].pop_front();
            if (read.en) for (int i = 0; i < lanes; i++)
                (b ? dut.pb___05Fdata[i] : dut.ab___05Fdata[i]) =
                    read.at < sizes[b] ? memory[b][read.at * lanes + i] : 0;
        }
        dut.clk = 0; dut.eval();
    };
    for (int i = 0; i < 4; i++) tick();
    dut.rst = 0;
    dut.eval();
    for (uint32_t pass = 0; pass < n_passes; pass++) {
        for (int i = 0; i < fields; i++) dut.unit___05Fdesc[i] = get();
        dut.unit___05Fstart = 1;
        dut.eval();
        int cycle = 1;
        for (;; cycle++) {
            if (dut.sb___05Fen) {
                printf("S %u", (unsigned)dut.sb___05Faddr);
                for (int i = 0; i < lanes; i++) printf(" %d", (int)dut.sb___05Fdata[i]);
                printf("\n");
            }
            if (dut.ob___05Fen) {
                printf("O %u", (unsigned)dut.ob___05Faddr);
                for (int i = 0; i < lanes; i++) printf(" %d", (int)(int8_t)(dut.ob___05Fdata[i / 4] >> 8 * (i % 4)));
                printf("\n");
            }
            bool done = dut.unit___05Fdone;
            if (done) printf("P %d %d %d\n", cycle, (int)dut.unit___05Ferror, (int)dut.unit___05Ferror_code);
            tick();
            dut.unit___05Fstart = 0;
            dut.eval();
            if (done) break;
            if (cycle > 200000) { printf("T\n"); return 1; }
        }
    }
    return 0;
}
