// SPDX-License-Identifier: Apache-2.0
// The test bench; sim/rtl/testbench.py fills in the marks. See native/memory.cpp for the meaning of time and of the calls.
`timescale 1ns / 1ns

import "DPI-C" function longint unsigned alula_open(input int n_ports);
import "DPI-C" function int unsigned alula_step(
    input int index, input longint unsigned cycle, input longint unsigned run_cycle, input int unsigned flags,
    input int unsigned attributes, input longint unsigned araddr, input int unsigned arlen,
    input longint unsigned awaddr, input int unsigned awlen);
import "DPI-C" function void alula_write_beat(
    input int index, input longint unsigned cycle, input bit [511:0] data, input longint unsigned strobes,
    input int unsigned last);
import "DPI-C" function void alula_read_beat(input int index, output bit [511:0] data);
import "DPI-C" function void alula_trace(
    input int unsigned starts, input int unsigned dones, input longint unsigned cycle, input longint unsigned run_cycle,
    input bit [32*@N_UNITS@-1:0] tags);
import "DPI-C" function void alula_violation(input int index, input longint unsigned cycle, input string what);
import "DPI-C" function void alula_close(input longint unsigned cycle);

module testbench;
    localparam int N_PORTS = @N_PORTS@;
    localparam int N_UNITS = @N_UNITS@;

    logic clk = 0;
    logic rst = 1;
    logic [7:0] reset_left = @RESET_CYCLES@;
    longint unsigned cycle = 0;
    longint unsigned max_cycles;
    logic [63:0] trace_cycle;  // the design's own count, of its run

    always #1 clk = ~clk;
    initial max_cycles = alula_open(N_PORTS);
    final begin
        for (int i = 0; i < N_PORTS; i++) if (axi_open[i]) alula_violation(i, cycle, "has a transaction open at the end");
        alula_close(cycle);
    end

    always_ff @(posedge clk) begin
        if (reset_left != 0) reset_left <= reset_left - 1;
        rst <= reset_left != 0;
        if (!rst) cycle <= cycle + 1;
    end

    // Memories. `busy` ports have something in flight; the others need no call unless a request comes.
@MEMORY_SIGNALS@
@DUT_HANDSHAKES@
    logic [N_PORTS-1:0] axi_open;

    // What the top drives is checked, and its handshakes are stalled at random if the run asks for it.
    for (genvar g = 0; g < N_PORTS; g++) begin : guards
        axi_guard #(.PORT(g)) guard (.clk(clk), .rst(rst), .cycle(cycle), .open(axi_open[g]), @GUARD_CONNECTIONS@);
    end
    logic [N_PORTS-1:0] busy = 0;
    logic [N_PORTS-1:0] port_failed = 0;

    initial for (int i = 0; i < N_PORTS; i++) begin
        arready[i] = 1; awready[i] = 1; wready[i] = 1;
        rvalid[i] = 0; bvalid[i] = 0; rlast[i] = 0; rresp[i] = 0; bresp[i] = 0; rdata[i] = 0;
    end

    always_ff @(posedge clk) if (!rst) begin
        for (int i = 0; i < N_PORTS; i++) begin
            if (wvalid[i]) alula_write_beat(i, cycle, wdata[i], wstrb[i], {31'b0, wlast[i]});
            if (arvalid[i] || awvalid[i] || wvalid[i] || busy[i]) begin
                automatic bit [511:0] beat;
                automatic int unsigned result;
                result = alula_step(
                    i, cycle, trace_cycle, {28'b0, bready[i], rready[i], awvalid[i], arvalid[i]},
                    {22'b0, awburst[i], awsize[i], arburst[i], arsize[i]},
                    araddr[i], {24'b0, arlen[i]}, awaddr[i], {24'b0, awlen[i]});
                if (result[0] && (!rvalid[i] || rready[i])) begin
                    alula_read_beat(i, beat);
                    rdata[i] <= beat;
                end
                rvalid[i] <= result[0];
                rlast[i] <= result[1];
                rresp[i] <= result[3:2];
                bvalid[i] <= result[4];
                bresp[i] <= result[6:5];
                busy[i] <= result[7];
                port_failed[i] <= result[8];
            end
        end
    end

    // Trace
    logic [N_UNITS-1:0] trace_start, trace_done;
    logic [31:0] trace_tag [N_UNITS];

    always_ff @(posedge clk) if (!rst && (|trace_start || |trace_done)) begin
        automatic bit [32*N_UNITS-1:0] tags;
        for (int i = 0; i < N_UNITS; i++) tags[32*i +: 32] = trace_tag[i];
        alula_trace(32'(trace_start), 32'(trace_done), cycle, trace_cycle, tags);
    end

@CONTROL@
    @TOP@;
endmodule
