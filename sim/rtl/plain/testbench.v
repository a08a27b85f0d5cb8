// SPDX-License-Identifier: Apache-2.0
// The test bench around an accelerator top in plain Verilog-2005: clock, memories, control port, trace, end of a run.
// It stands still until somebody asks for register accesses: cocotb, or self_check.v. sim/rtl/testbench.py fills in
// what depends on the top, and control.v. native/tb.sv is the same for Verilator, with its memories in C++.
`timescale 1ns / 1ns

module testbench;
    localparam N_PORTS = @N_PORTS@;
    localparam N_UNITS = @N_UNITS@;

    reg clk = 0;
    reg rst = 1;
    reg [7:0] reset_left = @RESET_CYCLES@;
    reg [63:0] cycle = 0;  // 0 is the first out of reset
    always #1 clk = ~clk;
    always @(posedge clk) begin
        if (reset_left != 0) reset_left <= reset_left - 1;
        rst <= reset_left != 0;
        if (!rst) cycle <= cycle + 1;
    end

    // Memories. `finish` asks them for what is left when the run is over; `finished` says that it is there.
    reg finish = 0;
    wire finished;
    wire [N_PORTS-1:0] port_finished, port_failed;
    wire [32*N_PORTS-1:0] n_expected, n_differing;
    assign finished = &port_finished;
@MEMORIES@

    // Trace: a line a start or an end of a unit, with the bench's cycle and the run's.
    wire [N_UNITS-1:0] trace_start, trace_done;
    wire [32*N_UNITS-1:0] trace_tag;
    wire [63:0] trace_cycle;
    integer trace, unit;
    initial trace = $fopen("trace.txt", "w");
    always @(posedge clk) if (!rst && (trace_start != 0 || trace_done != 0))
        for (unit = 0; unit < N_UNITS; unit = unit + 1) begin
            if (trace_start[unit])
                $fdisplay(trace, "start %0d %0d %0d %0d", unit, cycle, trace_cycle, trace_tag[32*unit +: 32]);
            if (trace_done[unit]) $fdisplay(trace, "done %0d %0d %0d 0", unit, cycle, trace_cycle);
        end
    always @(posedge finished) $fclose(trace);

    reg [63:0] max_cycles;
    initial if (!$value$plusargs("max_cycles=%d", max_cycles)) max_cycles = 10000000;

@CONTROL@
    @TOP@;
endmodule
