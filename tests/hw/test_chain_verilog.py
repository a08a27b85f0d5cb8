"""The chain's Verilog with the DSP48E2 primitive, against its behavioural twin and a C++ dot product; its synthesis."""

import re
import subprocess
from importlib.resources import files

import pytest

from hw.chain import CASCADE_GROUPS, STEP, SUMS, TABLES, TAPS, SkewedChain, SparseChain, chain_latency
from hw.dsp48e2 import DSP48E2, MultiplyAccumulate
from hw.dsp_group import WRITE
from hw.verilog_writer import convert, run_yosys
from sim.rtl.toolchain import tool_environment

MODEL = files("hw").joinpath("verilog", "dsp48e2.v").read_text()

# Both tops offer a `mismatch` output, so that Verilator compares what it simulates anyway.
CHAIN_TOP = f"""
module top(input clk, rst, i_valid, input [{STEP.size - 1}:0] i, input [{TABLES.size - 1}:0] tables,
           output o_valid, sums_valid, output [{TAPS.size - 1}:0] o, output [{SUMS.size - 1}:0] sums, output mismatch);
  wire [{TAPS.size - 1}:0] o_plain; wire [{SUMS.size - 1}:0] sums_plain; wire o_valid_plain, sums_valid_plain;
  chain_primitive primitive_(.clk, .rst, .i__valid(i_valid), .i__payload(i), .tables, .o__valid(o_valid),
                             .o__payload(o), .o_sums__valid(sums_valid), .o_sums__payload(sums));
  chain_plain plain(.clk, .rst, .i__valid(i_valid), .i__payload(i), .tables, .o__valid(o_valid_plain),
                    .o__payload(o_plain), .o_sums__valid(sums_valid_plain), .o_sums__payload(sums_plain));
  assign mismatch = o !== o_plain || sums !== sums_plain || o_valid !== o_valid_plain
                    || sums_valid !== sums_valid_plain;
endmodule
"""

SLICE_TOP = """
module top(input clk, en, clear, cascade, input [26:0] a, d, input [17:0] b, input [47:0] pcin, input [1:0] addend,
           output mismatch);
  wire [47:0] p1, p2, q1, q2, c1, c2, r1, r2, p3, q3;
  slice_primitive_1 s1(.clk, .en, .clear, .cascade, .a, .d, .b, .pcin, .p(p1), .pcout(c1));
  slice_primitive_2 s2(.clk, .en, .clear, .cascade, .a, .d, .b, .pcin, .p(p2), .pcout(c2));
  slice_plain_1 t1(.clk, .en, .clear, .cascade, .a, .d, .b, .pcin, .p(q1), .pcout(r1));
  slice_plain_2 t2(.clk, .en, .clear, .cascade, .a, .d, .b, .pcin, .p(q2), .pcout(r2));
  slice_primitive_mac s3(.clk, .rst(1'b0), .a, .b, .c(pcin), .addend, .p(p3));
  slice_plain_mac t3(.clk, .rst(1'b0), .a, .b, .c(pcin), .addend, .p(q3));
  assign mismatch = p3 !== q3 || p1 !== q1 || p2 !== q2 || c1 !== r1 || c2 !== r2;
endmodule
"""

FIELDS = "".join(
    f"const int {prefix}{name.upper()} = {field.offset};\n"
    for prefix, layout in (("", STEP), ("TABLES_", TABLES), ("WRITE_", WRITE))
    for name, field in layout
)
"""Where the fields of the layouts begin."""

CHAIN_MAIN = (
    FIELDS
    + r"""
#include <cstdio>
#include <deque>
#include <random>
#include "Vtop.h"
using Random = std::mt19937_64;
static Vtop top;
template <class Port> static void put(Port& port, int bit, int width, unsigned value) {
    for (int k = 0; k < width; k++) {
        unsigned mask = 1u << ((bit + k) & 31);
        if (value >> k & 1) port[(bit + k) >> 5] |= mask; else port[(bit + k) >> 5] &= ~mask;
    }
}
static int get(int bit, int width) {
    int value = 0;
    for (int k = 0; k < width; k++) value |= int(top.o[(bit + k) >> 5] >> ((bit + k) & 31) & 1) << k;
    return value << (32 - width) >> (32 - width);
}
struct Step { int lanes[8][2]; int due; };
int main(int, char** argv) {
    const int n_steps = atoi(argv[1]), latency = atoi(argv[2]), always_break = atoi(argv[3]);
    Random rng(1);
    auto draw = [&](int low, int high) {
        unsigned kind = rng() % 8;
        return kind == 0 ? low : kind == 1 ? high : low + int(rng() % unsigned(high - low + 1));
    };
    std::deque<Step> taps, sums;
    static int table[2][8][16][2];
    int sent = 0;
    for (int cycle = 0; sent < n_steps || !sums.empty(); cycle++) {
        int act[16], weight[2][16], index[16], sparse = rng() & 1, row = rng() & 1, half = rng() & 1;
        int breaks = always_break, group = 0;
        while (group < 8) { group += 1 + rng() % 4; breaks |= 1 << group; }
        breaks &= 255;
        for (int i = 0; i < 16; i++) {
            put(top.i, ACTS + 8 * i, 8, act[i] = draw(-128, 127));
            for (int j = 0; j < 2; j++)
                put(top.i, WEIGHTS + (j * 16 + i) * 8, 8, weight[j][i] = draw(-127, 127));
            put(top.i, INDICES + 4 * i, 4, index[i] = rng() % 16);
        }
        put(top.i, SPARSE, 1, sparse); put(top.i, ROW, 1, row); put(top.i, HALF, 1, half);
        put(top.i, BREAKS, 8, breaks);
        int written = rng() & 1, written_half = rng() & 1, at = rng() % 16, entry[8][2];
        put(top.tables, TABLES_WRITE + WRITE_EN, 1, written);
        put(top.tables, TABLES_WRITE + WRITE_HALF, 1, written_half);
        put(top.tables, TABLES_WRITE + WRITE_AT, 4, at);
        for (int g = 0; g < 8; g++)
            for (int token = 0; token < 2; token++)
                put(top.tables, TABLES_ENTRIES + (g * 2 + token) * 8, 8, entry[g][token] = draw(-128, 127));
        top.i_valid = sent < n_steps && rng() % 4;
        if (top.i_valid) {
            Step step;
            int sum[2] = {0, 0};
            for (int i = 0; i < 16; i++)
                for (int lane = 0; lane < 2; lane++) {
                    if (i % 2 == 0 && breaks >> i / 2 & 1) sum[lane] = 0;
                    sum[lane] += !sparse ? act[i] * weight[lane][i]
                                         : table[half][i / 2][index[i]][lane] * weight[row][i];
                    step.lanes[i / 2][lane] = sum[lane];
                }
            step.due = cycle + latency;
            taps.push_back(step);
            step.due++;
            sums.push_back(step);
            sent++;
        }
        top.clk = 0; top.eval();
        auto fail = [&](const char* what) { printf("%s differs, cycle %d\n", what, cycle); exit(1); };
        if (top.mismatch) fail("behavioural twin");
        if (top.o_valid != (!taps.empty() && taps[0].due == cycle)) fail("o.valid");
        if (top.sums_valid != (!sums.empty() && sums[0].due == cycle)) fail("o_sums.valid");
        if (top.o_valid) {
            for (int g = 0; g < 8; g++)
                for (int lane = 0; lane < 2; lane++)
                    if (get((g * 2 + lane) * 19, 19) != taps[0].lanes[g][lane]) fail("tap");
            taps.pop_front();
        }
        if (top.sums_valid) {
            for (int lane = 0; lane < 2; lane++) {
                int got = int(top.sums >> 20 * lane & 0xfffff) << 12 >> 12;
                if (got != sums[0].lanes[3][lane] + sums[0].lanes[7][lane]) fail("sum");
            }
            sums.pop_front();
        }
        top.clk = 1; top.eval();
        if (written)
            for (int g = 0; g < 8; g++)
                for (int token = 0; token < 2; token++) table[written_half][g][at][token] = entry[g][token];
    }
    printf("%d steps equal\n", sent);
}
"""
)

SLICE_MAIN = r"""
#include <cstdio>
#include <random>
#include "Vtop.h"
int main(int, char** argv) {
    Vtop top;
    std::mt19937_64 rng(2);
    const int n_cycles = atoi(argv[1]);
    for (int cycle = 0; cycle < n_cycles; cycle++) {
        top.a = rng() & 0x7ffffff; top.d = rng() & 0x7ffffff; top.b = rng() & 0x3ffff;
        top.pcin = rng() & 0xffffffffffff; top.cascade = rng() & 1;
        top.addend = rng() % 3;
        top.en = rng() % 8 != 0; top.clear = rng() % 16 == 0;
        top.clk = 0; top.eval();
        if (top.mismatch) { printf("behavioural twin differs, cycle %d\n", cycle); return 1; }
        top.clk = 1; top.eval();
    }
    printf("%d cycles equal\n", n_cycles);
}
"""


def verilate(folder, verilog, main):
    """Builds a simulation whose top is ``top``; returns its path."""
    (folder / "design.sv").write_text(verilog)
    (folder / "main.cpp").write_text(main)
    run = subprocess.run(
        [
            "verilator",
            "--cc",
            "--exe",
            "--build",
            "-j",
            "2",
            "--top-module",
            "top",
            "-Mdir",
            "obj",
            "-Wno-lint",
            "-Wno-style",
            "-Wno-fatal",
            "-O3",
            "-CFLAGS",
            "-O1",
            "design.sv",
            "main.cpp",
        ],
        cwd=folder,
        env=tool_environment(folder / "bin"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder / "obj" / "Vtop"


def execute(binary, *arguments):
    return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("cascade_groups", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_primitive_chain_equals_plain_chain_and_dot_product(tmp_path, cascade_groups):
    twins = [
        convert(SparseChain(cascade_groups=cascade_groups, primitive=primitive), name)
        for name, primitive in (("chain_primitive", True), ("chain_plain", False))
    ]
    binary = verilate(tmp_path, "\n".join([CHAIN_TOP, *twins, MODEL]), CHAIN_MAIN)
    always_break = sum(1 << group for group in range(0, 8, cascade_groups))
    run = execute(binary, 100_000, chain_latency(cascade_groups), always_break)
    assert run.stdout.strip() == "100000 steps equal"


def slices(model):
    twins = [
        convert(DSP48E2(stages=stages, primitive=primitive), f"slice_{name}_{stages}")
        for name, primitive in (("primitive", True), ("plain", False))
        for stages in (1, 2)
    ]
    twins += [
        convert(MultiplyAccumulate(primitive=primitive), f"slice_{name}_mac")
        for name, primitive in (("primitive", True), ("plain", False))
    ]
    return "\n".join([SLICE_TOP, *twins, model])


def test_primitive_slice_equals_plain_slice(tmp_path):
    run = execute(verilate(tmp_path, slices(MODEL), SLICE_MAIN), 1_000_000)
    assert run.stdout.strip() == "1000000 cycles equal"


def test_a_broken_model_is_caught(tmp_path):
    broken = MODEL.replace("(BREG == 2) ? b1 : B", "B")
    assert broken != MODEL
    run = execute(verilate(tmp_path, slices(broken), SLICE_MAIN), 1000)
    assert run.returncode == 1 and "behavioural twin differs" in run.stdout


def test_model_refuses_what_it_does_not_cover(tmp_path):
    odd = slices(MODEL).replace('.AMULTSEL("AD")', '.AMULTSEL("B")')
    assert odd != slices(MODEL)
    run = execute(verilate(tmp_path, odd, SLICE_MAIN), 10)
    assert "does not cover the chosen parameters" in run.stdout


@pytest.mark.slow
def test_synthesis_uses_sixteen_slices_and_infers_none(tmp_path):
    """Of the chain as a matrix unit has it: what skews its inputs is shared by all chains."""
    block = SkewedChain(cascade_groups=CASCADE_GROUPS, primitive=True)
    (tmp_path / "chain.v").write_text(convert(block, "chain"))
    # ABC9 stumbles over Amaranth's wires with brackets in their names.
    run_yosys(
        [
            f"read_verilog {tmp_path / 'chain.v'}",
            "rename -hide w:*[*",
            "synth_xilinx -family xcup -top chain -flatten -noiopad -noclkbuf",
            f"tee -o {tmp_path / 'stat.txt'} stat",
        ]
    )
    report = (tmp_path / "stat.txt").read_text()
    cells = {name: int(count) for count, name in re.findall(r"^\s*(\d+)\s+([A-Z]\w+)$", report, flags=re.M)}
    assert cells["DSP48E2"] == 16
    assert not any(name.startswith(("DSP48E1", "RAMB", "URAM")) for name in cells)
    assert cells["FDRE"] <= 240, "registers outside the slices and the shift-register LUTs"
