// SPDX-License-Identifier: Apache-2.0
// One run of the accelerator that checks itself: it writes the registers, starts, waits for the interrupt, compares the
// status, every counter and what the memories hold, and prints PASS or FAIL. A failure ends with a non-zero exit code.
// All of it is Verilog-2005 but for $fatal (SystemVerilog), which is how a simulator is told to fail.
`timescale 1ns / 1ns

module self_check;
    localparam N_PORTS = @N_PORTS@;
    localparam [63:0] MAX_CYCLES = @MAX_CYCLES@;

    testbench bench();

    // Accesses begin between two rising edges of the clock: no race with what the edge changes.
    task access;
        begin
            bench.csr_request = !bench.csr_acknowledge;
            @(negedge bench.clk);
            while (bench.csr_request != bench.csr_acknowledge) @(negedge bench.clk);
        end
    endtask

    task write(input [@CSR_ADDRESS_BITS@-1:0] address, input [31:0] value);
        begin
            bench.csr_write = 1;
            bench.csr_address = address;
            bench.csr_wdata = value;
            access;
        end
    endtask

    integer n_wrong = 0;
    task check(input [@CSR_ADDRESS_BITS@-1:0] address, input [31:0] expected, input [8*40-1:0] what);
        begin
            bench.csr_write = 0;
            bench.csr_address = address;
            access;
            if (bench.csr_rdata !== expected) begin
                $display("%0s: found %0d, expected %0d", what, bench.csr_rdata, expected);
                n_wrong = n_wrong + 1;
            end
        end
    endtask

    integer port;
    reg [31:0] n_expected, n_differing;
    initial begin
        @(negedge bench.rst);
        @(negedge bench.clk);
        bench.max_cycles = MAX_CYCLES;
@WRITES@
        while (!bench.stop) @(negedge bench.clk);
        if (bench.timeout || bench.failed) begin
            $display("FAIL: %0s in cycle %0d", bench.timeout ? "no interrupt" : "a memory refused a request", bench.cycle);
            $fatal;
        end
@CHECKS@
        bench.finish = 1;
        while (!bench.finished) @(negedge bench.clk);
        n_expected = 0;
        n_differing = 0;
        for (port = 0; port < N_PORTS; port = port + 1) begin
            n_expected = n_expected + bench.n_expected[32*port +: 32];
            n_differing = n_differing + bench.n_differing[32*port +: 32];
        end
        if (n_wrong != 0 || n_differing != 0 || n_expected != @N_EXPECTED@) begin
            $display("FAIL: %0d registers and %0d of %0d beats of memory are not as expected", n_wrong, n_differing,
                     n_expected);
            $fatal;
        end
        $display("PASS: @CYCLES@ cycles, @N_CHECKS@ registers and %0d beats of memory are as expected", n_expected);
        $finish;
    end
endmodule
