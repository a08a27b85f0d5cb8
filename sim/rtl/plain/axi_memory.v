// SPDX-License-Identifier: Apache-2.0
// One AXI4 memory of the test bench in plain Verilog-2005: it runs in any simulator, without C++ and without DPI.
//
// Time, as in hw/spec/memory.py and native/memory.cpp (fixed latency; HBM is modelled in C++ alone). `cycle` is the
// cycle that a clock edge ends; outputs are those of the next one. Requests of one direction are served in order.
//   reads   AR accepted in cycle t, read number j: beat i is presented in cycle
//           max(t + read_latency + jitter of j + i, cycle in which the previous beat was taken + 1)
//   writes  B is presented in cycle max(last W beat's or AW's cycle, the later + write_latency, previous B taken + 1)
// A read takes its data when its beat is presented; a write reaches the memory when its B is.
//
// Files in the folder of the run, all of them text:
//   setup.txt          read: lines of a name and its numbers (sim/rtl/run.py writes them)
//   memory_PORT.hex    read: the beats that the memory holds at first, for $readmemh
//   expected_PORT.hex  read at the end, if it is there: a line a beat, its number and what it must hold
//   dump_N.hex         written at the end: the beats of the N-th (from 0) `dump` line of setup.txt
//   port_PORT.txt      written: a line a burst (`log_axi 1`), at the end a line of what the port has moved
`timescale 1ns / 1ns

module axi_memory #(
    parameter integer PORT = 0,
    parameter integer BEATS = 1024  // of 64 bytes that are stored; beyond them, up to the memory's size, it is zero
) (
    input  wire         clk, rst,
    input  wire [63:0]  cycle,
    input  wire         finish,       // the run is over: write the dumps, compare with what is expected
    output reg          finished,
    output reg          failed,       // a request that AXI4 forbids, or a write that cannot be stored
    output reg  [31:0]  n_expected,   // beats that were compared; valid with `finished`, as is
    output reg  [31:0]  n_differing,  // those that hold something else
    input  wire [63:0]  araddr, awaddr, wstrb,
    input  wire [7:0]   arlen, awlen,
    input  wire [2:0]   arsize, awsize,
    input  wire [1:0]   arburst, awburst,
    input  wire [511:0] wdata,
    input  wire         arvalid, awvalid, wvalid, wlast, rready, bready,
    output wire         arready, awready, wready,
    output reg  [511:0] rdata,
    output reg  [1:0]   rresp, bresp,
    output reg          rvalid, rlast, bvalid
);
    localparam DEPTH = 4096;  // bursts of a direction, and beats of write data, that can be under way
    localparam FAULTS = 16;   // planted faults
    localparam SHOWN = 4;     // differing beats that are printed
    localparam [1:0] OKAY = 0, DECERR = 3;

    assign arready = 1;
    assign awready = 1;
    assign wready = 1;

    // What was never written is zero. A simulator with four values has x there.
    reg [511:0] beats [0:BEATS-1];
    function [511:0] content(input [63:0] index);
        content = index >= BEATS || ^beats[index] === 1'bx ? 512'd0 : beats[index];
    endfunction

    // Setup: a line is a name and one to four numbers.
    reg [63:0]     size_bytes, read_latency, write_latency, jitter, seed, log_axi;
    reg [63:0]     fault_request [0:FAULTS-1];
    reg            fault_is_write [0:FAULTS-1];
    reg [1:0]      fault_response [0:FAULTS-1];
    reg [8*16-1:0] key;
    reg [63:0]     v0, v1, v2, v3;
    reg [8*40-1:0] name;
    integer        setup, log, n_faults, n_dumps;
    reg            more;

    task next_line;
        begin
            more = $fscanf(setup, "%s %d", key, v0) == 2;
            if (key == "size" || key == "fault" || key == "dump") more = more && $fscanf(setup, "%d", v1) == 1;
            if (key == "fault" || key == "dump") more = more && $fscanf(setup, "%d", v2) == 1;
            if (key == "fault") more = more && $fscanf(setup, "%d", v3) == 1;
        end
    endtask

    task take_line;
        case (key)
            "size": if (v0 == PORT) size_bytes = v1;
            "read_latency": read_latency = v0;
            "write_latency": write_latency = v0;
            "jitter": jitter = v0;
            "seed": seed = v0;
            "log_axi": log_axi = v0;
            "fault": if (v0 == PORT) begin
                fault_is_write[n_faults] = v1 != 0;
                fault_request[n_faults] = v2;
                fault_response[n_faults] = v3[1:0];
                n_faults = n_faults + 1;
            end
            default: ;
        endcase
    endtask

    initial begin
        {finished, failed, n_expected, n_differing} = 0;
        {rdata, rresp, bresp, rvalid, rlast, bvalid} = 0;
        {size_bytes, read_latency, write_latency, jitter, seed, log_axi} = 0;
        n_faults = 0;
        setup = $fopen("setup.txt", "r");
        if (setup == 0) begin
            $display("alula: setup.txt is not in the folder of the run");
            failed = 1;
        end
        else begin
            next_line;
            while (more) begin
                take_line;
                next_line;
            end
            $fclose(setup);
        end
        $sformat(name, "memory_%0d.hex", PORT);
        $readmemh(name, beats);
        $sformat(name, "port_%0d.txt", PORT);
        log = $fopen(name, "w");
    end

    // Requests: is the burst legal (A3.4.1 of the AXI4 specification, IHI 0022), and what is the answer?
    task fail(input [8*80-1:0] what);
        begin
            if (!failed) $display("alula: cycle %0d: port %0d %0s", cycle, PORT, what);
            failed <= 1;
        end
    endtask

    task check_burst(input [63:0] address, input [7:0] length, input [2:0] size, input [1:0] burst, input is_write);
        begin
            $sformat(name, "%0s addr 0x%0h len %0d", is_write ? "AW" : "AR", address, length + 32'd1);
            if (size != 6) fail({name, ": size is not 6 (64 bytes a beat)"});
            if (burst != 1) fail({name, ": burst is not INCR"});
            if (address[5:0] != 0) fail({name, ": address is not a multiple of 64 bytes"});
            if ({2'd0, address[11:6]} + {1'b0, length} > 63) fail({name, ": the burst crosses a 4 KiB boundary"});
        end
    endtask

    integer f;
    reg [63:0] last_beat;
    task find_answer(input [63:0] address, input [7:0] length, input [63:0] request, input is_write,
                     output [1:0] response);
        begin
            last_beat = address[63:6] + length;
            response = last_beat < size_bytes[63:6] ? OKAY : DECERR;
            if (is_write && response == OKAY && last_beat >= BEATS) fail("AW: beyond what the test bench stores");
            for (f = 0; f < n_faults; f = f + 1)
                if (fault_is_write[f] == is_write && fault_request[f] == request) response = fault_response[f];
        end
    endtask

    // Reads: a queue of bursts. `due` is the earliest cycle of the oldest burst's next beat.
    reg [63:0] read_address [0:DEPTH-1];
    reg [63:0] read_due [0:DEPTH-1];
    reg [63:0] read_accepted [0:DEPTH-1];
    reg [7:0]  read_length [0:DEPTH-1];
    reg [1:0]  read_response [0:DEPTH-1];
    reg [63:0] n_reads = 0, n_reads_done = 0, n_read_beats = 0, first_beat, due;
    reg [7:0]  beat = 0;
    integer    r;

    // As hash32 in hw/spec/memory.py.
    function [31:0] hash32(input [31:0] start, input [31:0] port, input [31:0] request);
        reg [31:0] x;
        begin
            x = start * 32'h9E3779B1 + port * 32'h85EBCA77 + request * 32'hC2B2AE3D;
            x = (x ^ (x >> 16)) * 32'h85EBCA6B;
            x = (x ^ (x >> 13)) * 32'hC2B2AE35;
            hash32 = x ^ (x >> 16);
        end
    endfunction

    task accept_read;
        begin
            check_burst(araddr, arlen, arsize, arburst, 1'b0);
            if (n_reads - n_reads_done == DEPTH) fail("more reads under way than the test bench stores");
            r = n_reads % DEPTH;
            read_address[r] = araddr;
            read_length[r] = arlen;
            read_accepted[r] = cycle;
            read_due[r] = cycle + read_latency;
            if (jitter != 0) read_due[r] = read_due[r] + hash32(seed[31:0], PORT, n_reads[31:0]) % (jitter + 1);
            find_answer(araddr, arlen, n_reads, 1'b0, read_response[r]);
            n_reads = n_reads + 1;
        end
    endtask

    reg present_read, read_is_new;
    task step_reads;
        begin
            r = n_reads_done % DEPTH;
            present_read = rvalid;
            if (rvalid && rready) begin
                n_read_beats = n_read_beats + 1;
                if (beat == 0) first_beat = cycle;
                if (beat == read_length[r]) begin
                    if (log_axi != 0)
                        $fdisplay(log, "burst 0 %0d %0d %0d %0d %0d %0d", n_reads_done, read_length[r] + 32'd1,
                                  read_address[r], read_accepted[r], first_beat, cycle);
                    n_reads_done = n_reads_done + 1;
                    beat = 0;
                end
                else beat = beat + 1;
                present_read = 0;
            end
            r = n_reads_done % DEPTH;
            due = read_due[r] + beat;
            read_is_new = !present_read && n_reads != n_reads_done && due <= cycle + 1;
            present_read = present_read || read_is_new;
        end
    endtask

    // Writes: addresses and data come apart; a burst is complete, and joins the answers, when both are there.
    reg [511:0] write_data [0:DEPTH-1];
    reg [63:0]  write_strobes [0:DEPTH-1];
    reg [63:0]  write_accepted [0:DEPTH-1];  // of a beat
    reg         write_last [0:DEPTH-1];
    reg [63:0]  write_address [0:DEPTH-1];
    reg [63:0]  address_accepted [0:DEPTH-1];
    reg [7:0]   write_length [0:DEPTH-1];
    reg [63:0]  answer_accepted [0:DEPTH-1];
    reg [1:0]   answer_response [0:DEPTH-1];
    reg [63:0]  n_addresses = 0, n_data = 0, n_answers = 0, n_answers_done = 0;
    reg [63:0]  n_data_matched = 0, n_data_done = 0, n_write_bytes = 0;
    integer     w, d, a, i;
    reg [511:0] merged;

    task accept_data;
        begin
            if (n_data - n_data_done == DEPTH) fail("more write data under way than the test bench stores");
            d = n_data % DEPTH;
            write_data[d] = wdata;
            write_strobes[d] = wstrb;
            write_accepted[d] = cycle;
            write_last[d] = wlast;
            for (i = 0; i < 64; i = i + 1) n_write_bytes = n_write_bytes + wstrb[i];
            n_data = n_data + 1;
            match_write;
        end
    endtask

    task accept_address;
        begin
            check_burst(awaddr, awlen, awsize, awburst, 1'b1);
            if (n_addresses - n_answers_done == DEPTH) fail("more writes under way than the test bench stores");
            w = n_addresses % DEPTH;
            write_address[w] = awaddr;
            write_length[w] = awlen;
            address_accepted[w] = cycle;
            n_addresses = n_addresses + 1;
            match_write;
        end
    endtask

    task match_write;
        begin
            w = n_answers % DEPTH;
            if (n_answers != n_addresses && n_data - n_data_matched > write_length[w]) begin
                for (i = 0; i <= write_length[w]; i = i + 1) begin
                    d = (n_data_matched + i) % DEPTH;
                    if (write_last[d] != (i == write_length[w])) fail("W: wlast does not agree with awlen");
                end
                n_data_matched = n_data_matched + write_length[w] + 1;
                answer_accepted[w] = address_accepted[w] > write_accepted[d] ? address_accepted[w] : write_accepted[d];
                find_answer(write_address[w], write_length[w], n_answers, 1'b1, answer_response[w]);
                n_answers = n_answers + 1;
            end
        end
    endtask

    // Puts the data of the oldest answer into the memory, if it is no error.
    task store;
        for (i = 0; i <= write_length[w]; i = i + 1) begin
            d = n_data_done % DEPTH;
            if (answer_response[w] == OKAY) begin
                merged = write_data[d];
                if (write_strobes[d] != ~64'd0) begin
                    merged = content(write_address[w][63:6] + i);
                    for (a = 0; a < 64; a = a + 1)
                        if (write_strobes[d][a]) merged[8*a +: 8] = write_data[d][8*a +: 8];
                end
                if (^merged === 1'bx) fail("W: a byte that is written has no known value");
                beats[write_address[w][63:6] + i] = merged;
            end
            n_data_done = n_data_done + 1;
        end
    endtask

    reg present_answer;
    task step_writes;
        begin
            w = n_answers_done % DEPTH;
            present_answer = bvalid;
            if (bvalid && bready) begin
                if (log_axi != 0)
                    $fdisplay(log, "burst 1 %0d %0d %0d %0d %0d %0d", n_answers_done, write_length[w] + 32'd1,
                              write_address[w], answer_accepted[w], cycle, cycle);
                n_answers_done = n_answers_done + 1;
                present_answer = 0;
            end
            w = n_answers_done % DEPTH;
            due = answer_accepted[w] + write_latency;
            if (!present_answer && n_answers != n_answers_done && due <= cycle + 1) begin
                store;
                present_answer = 1;
            end
        end
    endtask

    always @(posedge clk) if (!rst) begin
        if (wvalid) accept_data;
        if (arvalid) accept_read;
        if (awvalid) accept_address;
        step_reads;
        step_writes;
        rvalid <= present_read;
        if (read_is_new) begin
            r = n_reads_done % DEPTH;
            rdata <= read_response[r] == OKAY ? content(read_address[r][63:6] + beat) : 512'd0;
            rresp <= read_response[r];
            rlast <= beat == read_length[r];
        end
        bvalid <= present_answer;
        bresp <= present_answer ? answer_response[n_answers_done % DEPTH] : OKAY;
    end

    // The end of a run
    integer    expected, scanned;
    reg [63:0] number;
    reg [511:0] wanted, found;

    task write_dumps;
        begin
            n_dumps = 0;
            setup = $fopen("setup.txt", "r");
            next_line;
            while (more) begin
                if (key == "dump") begin
                    $sformat(name, "dump_%0d.hex", n_dumps);
                    if (v0 == PORT) $writememh(name, beats, v1 >> 6, ((v1 + v2 + 63) >> 6) - 1);
                    n_dumps = n_dumps + 1;
                end
                next_line;
            end
            $fclose(setup);
        end
    endtask

    task compare;
        begin
            $sformat(name, "expected_%0d.hex", PORT);
            expected = $fopen(name, "r");
            scanned = expected == 0 ? 0 : $fscanf(expected, "%h %h", number, wanted);
            while (scanned == 2) begin
                found = content(number);
                n_expected = n_expected + 1;
                if (found !== wanted) begin
                    n_differing = n_differing + 1;
                    if (n_differing <= SHOWN) $display("port %0d beat %0d: found    %h", PORT, number, found);
                    if (n_differing <= SHOWN) $display("port %0d beat %0d: expected %h", PORT, number, wanted);
                end
                scanned = $fscanf(expected, "%h %h", number, wanted);
            end
            if (expected != 0) $fclose(expected);
        end
    endtask

    always @(posedge clk) if (finish && !finished) begin
        write_dumps;
        compare;
        $fdisplay(log, "moved %0d %0d %0d %0d %0d", n_reads, n_read_beats, n_answers, n_data, n_write_bytes);
        $fclose(log);
        finished <= 1;
    end
endmodule
