"""An accelerator top with one memory port that breaks AXI4 as it is told: what the guard of the test bench must see."""

from sim.rtl.testbench import top_signals

MODE, START = 0x10, 0x00

MODES = {
    "good": None,
    "araddr changes": "AR: changed or withdrawn",
    "arvalid is withdrawn": "AR: changed or withdrawn",
    "awlen changes": "AW: changed or withdrawn",
    "wdata changes": "W: changed or withdrawn",
    "wstrb changes": "W: changed or withdrawn",
    "boundary": "the burst crosses a 4 KiB boundary",
    "alignment": "address is not a multiple of 64 bytes",
    "size": "size is not 6",
    "fixed burst": "burst is not INCR",
    "wlast missing": "wlast does not agree with awlen",
    "wlast early": "wlast does not agree with awlen",
    "write boundary": "the burst crosses a 4 KiB boundary",
    "no data": "has a transaction open at the end",
    "no address": "W: data without an address",
    "ends before the answer": "has a transaction open at the end",
}
"""What the master does wrong -> what the guard says; each is one read of two beats and one write of two."""


def verilog() -> str:
    """The module `bad_master`."""
    ports = [
        f"{'input' if way == 'in' else 'output'} logic {f'[{bits - 1}:0] ' if bits > 1 else ''}{name}"
        for name, (bits, way) in top_signals(1).items()
    ]
    number = {name: index for index, name in enumerate(MODES)}

    def when(name: str) -> str:
        return f"mode == {number[name]}"

    tied = [
        "s_axi_control_awready = 1",
        "s_axi_control_wready = 1",
        "s_axi_control_bresp = 0",
        "s_axi_control_rresp = 0",
        "s_axi_control_arready = 1",
        "s_axi_control_rdata = 0",
        "m00_axi_rready = 1",
        "m00_axi_bready = 1",
        f"m00_axi_arsize = {when('size')} ? 5 : 6",
        "m00_axi_awsize = 6",
        "m00_axi_awburst = 1",
        f"m00_axi_arburst = {when('fixed burst')} ? 0 : 1",
        "m00_axi_arlen = 1",
        f"m00_axi_araddr = {when('boundary')} ? 64'h1fc0 : {when('alignment')} ? 64'h1020 : "
        f"{when('araddr changes')} ? 64'h1000 + 64 * count[3:0] : 64'h1000",
        f"m00_axi_arvalid = reads != 0 && !({when('arvalid is withdrawn')} && count[0])",
        f"m00_axi_awaddr = {when('write boundary')} ? 64'h1fc0 : 64'h2000",
        f"m00_axi_awlen = {when('awlen changes')} ? 8'(count[3:0]) : 1",
        "m00_axi_awvalid = addresses != 0",
        f"m00_axi_wdata = {when('wdata changes')} ? 512'(count) : 512'(beats)",
        f"m00_axi_wstrb = {when('wstrb changes')} ? 64'(count) : '1",
        "m00_axi_wvalid = beats != 0",
        f"m00_axi_wlast = {when('wlast missing')} ? 0 : {when('wlast early')} ? 1 : beats[0]",
        f"irq = count == ({when('ends before the answer')} ? 6 : 2000)",
        *(f"{name} = 0" for name in top_signals(1) if name.startswith("trace_")),
    ]
    return f"""
module bad_master(input logic clk, input logic rst, {", ".join(ports)});
    logic [31:0] mode = 0, count = 0, reads = 0, addresses = 0, beats = 0;
    logic running = 0, take;
    assign take = s_axi_control_awvalid && s_axi_control_wvalid && !s_axi_control_bvalid;
    {" ".join(f"assign {line};" for line in tied)}
    always_ff @(posedge clk) begin
        s_axi_control_bvalid <= take;
        s_axi_control_rvalid <= s_axi_control_arvalid && !s_axi_control_rvalid;
        if (take && s_axi_control_awaddr == {MODE}) mode <= s_axi_control_wdata;
        if (take && s_axi_control_awaddr == {START}) begin
            running <= 1; count <= 0; reads <= 3;
            addresses <= {when("no address")} ? 0 : 3;
            beats <= {when("no data")} ? 4 : {when("no address")} ? 600 : 6;
        end
        else if (running) begin
            count <= count + 1;
            if (m00_axi_arvalid && m00_axi_arready) reads <= reads - 1;
            if (m00_axi_awvalid && m00_axi_awready) addresses <= addresses - 1;
            if (m00_axi_wvalid && m00_axi_wready) beats <= beats - 1;
        end
    end
endmodule
"""
