// SPDX-License-Identifier: Apache-2.0
// Stands between the top and one of its memories: checks AXI4 in every cycle of every run, and stalls handshakes at
// random when asked to (+alula_stall=PERCENT). Rules are named by their section of the AXI4 specification (IHI 0022).
// No IDs: bursts of one direction are answered in order. AXI4's limit of 256 beats is the width of arlen and awlen.
`timescale 1ns / 1ns

module axi_guard #(parameter int PORT = 0) (
    input logic clk, rst,
    input longint unsigned cycle,
    output logic open,
    input logic dut_arvalid, dut_awvalid, dut_wvalid, dut_rready, dut_bready,
    output logic dut_arready, dut_awready, dut_wready, dut_rvalid, dut_bvalid,
    output logic arvalid, awvalid, wvalid, rready, bready,
    input logic arready, awready, wready, rvalid, bvalid,
    input logic [63:0] araddr, awaddr, wstrb,
    input logic [7:0] arlen, awlen,
    input logic [2:0] arsize, awsize,
    input logic [1:0] arburst, awburst, rresp, bresp,
    input logic [511:0] wdata, rdata,
    input logic wlast, rlast
);
    import "DPI-C" function void alula_violation(input int index, input longint unsigned cycle, input string what);

    localparam int DATA_AHEAD = 256;  // beats of write data that may come before their address
    localparam int PATIENCE = 100000; // cycles that the top may leave an answer waiting

    function automatic void fail(input string what);
        alula_violation(PORT, cycle, what);
    endfunction

    // Stalls: one bit a channel, new in every cycle.
    int percent = 0, seed = 1;
    logic [4:0] hold = 0;
    initial begin
        void'($value$plusargs("alula_stall=%d", percent));
        void'($value$plusargs("alula_stall_seed=%d", seed));
    end
    int unsigned state = 0;
    always_ff @(posedge clk) if (percent != 0) begin
        automatic int unsigned x;
        x = rst ? 32'h9E3779B9 * (seed * 64 + PORT + 1) : state;
        for (int i = 0; i < 5; i++) begin
            x ^= x << 13; x ^= x >> 17; x ^= x << 5;
            hold[i] <= (x >> 8) % 100 < percent;
        end
        state <= x;
    end
    assign {dut_arready, arvalid} = {arready, dut_arvalid} & {2{!hold[0]}};
    assign {dut_awready, awvalid} = {awready, dut_awvalid} & {2{!hold[1]}};
    assign {dut_wready, wvalid} = {wready, dut_wvalid} & {2{!hold[2]}};
    assign {dut_rvalid, rready} = {rvalid, dut_rready} & {2{!hold[3]}};
    assign {dut_bvalid, bready} = {bvalid, dut_bready} & {2{!hold[4]}};

    // A3.2.1: what waits for ready stays, and stays the same.
    logic ar_waits = 0, aw_waits = 0, w_waits = 0;
    logic [63:0] araddr_was, awaddr_was, wstrb_was;
    logic [12:0] ar_was, aw_was;
    logic [511:0] wdata_was;
    logic wlast_was;

    // A3.4.1
    function automatic void check_burst(
        input string channel, input logic [63:0] address, input logic [7:0] length, input logic [2:0] size,
        input logic [1:0] burst);
        automatic string what = $sformatf("%s addr 0x%0h len %0d: ", channel, address, int'(length) + 1);
        if (size != 6) fail({what, "size is not 6 (64 bytes a beat)"});
        if (burst != 1) fail({what, "burst is not INCR"});
        if (address[5:0] != 0) fail({what, "address is not a multiple of 64 bytes"});
        if (32'(address[11:6]) + 32'(length) >= 64) fail({what, "the burst crosses a 4 KiB boundary"});
    endfunction

    // Open bursts, in order: beats - 1.
    logic [7:0] reads[$], writes[$];
    int n_read_beats = 0;   // of the oldest read
    int n_write_beats = 0;  // of the oldest write whose data is not complete
    int n_answers = 0;      // complete writes whose B has not come
    logic [8:0] data_ahead[$];  // beats that came before their address, with their wlast
    int r_waits = 0, b_waits = 0;

    // The next beat of data in order: does wlast agree with the length?
    function automatic void take_data(input logic last);
        if (last != (n_write_beats == int'(writes[0]))) fail("W: wlast does not agree with awlen");
        if (n_write_beats == int'(writes[0])) begin
            void'(writes.pop_front());
            n_write_beats = 0;
            n_answers++;
        end
        else n_write_beats++;
    endfunction

    always @(posedge clk) begin
        if (rst) begin
            // A3.1.2
            if (dut_arvalid || dut_awvalid || dut_wvalid) fail("has a valid high during reset");
        end
        else begin
            if (ar_waits && (!dut_arvalid || araddr != araddr_was || {arlen, arsize, arburst} != ar_was))
                fail("AR: changed or withdrawn while it waited");
            if (aw_waits && (!dut_awvalid || awaddr != awaddr_was || {awlen, awsize, awburst} != aw_was))
                fail("AW: changed or withdrawn while it waited");
            if (w_waits && (!dut_wvalid || wdata != wdata_was || wstrb != wstrb_was || wlast != wlast_was))
                fail("W: changed or withdrawn while it waited");
            if (dut_arvalid && !ar_waits) check_burst("AR", araddr, arlen, arsize, arburst);
            if (dut_awvalid && !aw_waits) check_burst("AW", awaddr, awlen, awsize, awburst);
            // Answers first: they belong to what was open before this cycle.
            if (dut_rvalid && dut_rready) begin
                if (reads.size() == 0) fail("R: a beat that no read asked for");
                else begin
                    if (rlast != (n_read_beats == int'(reads[0]))) fail("R: rlast does not agree with arlen");
                    if (n_read_beats == int'(reads[0])) begin
                        void'(reads.pop_front());
                        n_read_beats = 0;
                    end
                    else n_read_beats++;
                end
            end
            if (dut_bvalid && dut_bready) begin
                if (n_answers == 0) fail("B: an answer that belongs to no complete write");
                else n_answers--;
            end
            r_waits = dut_rvalid && !dut_rready ? r_waits + 1 : 0;
            b_waits = dut_bvalid && !dut_bready ? b_waits + 1 : 0;
            if (r_waits > PATIENCE || b_waits > PATIENCE) fail("does not take an answer");
            if (dut_arvalid && dut_arready) reads.push_back(arlen);
            if (dut_awvalid && dut_awready) writes.push_back(awlen);
            if (dut_wvalid && dut_wready) data_ahead.push_back({8'b0, wlast});
            while (data_ahead.size() != 0 && writes.size() != 0) take_data(data_ahead.pop_front() != 0);
            if (data_ahead.size() > DATA_AHEAD) fail("W: data without an address");
            open <= reads.size() != 0 || writes.size() != 0 || n_answers != 0 || data_ahead.size() != 0 ||
                    dut_arvalid || dut_awvalid || dut_wvalid;
        end
        ar_waits <= !rst && dut_arvalid && !dut_arready;
        aw_waits <= !rst && dut_awvalid && !dut_awready;
        w_waits <= !rst && dut_wvalid && !dut_wready;
        if (dut_arvalid) begin araddr_was <= araddr; ar_was <= {arlen, arsize, arburst}; end
        if (dut_awvalid) begin awaddr_was <= awaddr; aw_was <= {awlen, awsize, awburst}; end
        if (dut_wvalid && !dut_wready) begin wdata_was <= wdata; wstrb_was <= wstrb; wlast_was <= wlast; end
    end
endmodule
