    // Control port: set an access up and toggle csr_request; csr_acknowledge follows when it is complete.
@CONTROL_SIGNALS@
    reg csr_request = 0;
    reg csr_acknowledge = 0;
    reg csr_write = 0;
    reg [@CSR_ADDRESS_BITS@-1:0] csr_address = 0;
    reg [31:0] csr_wdata = 0;
    reg [31:0] csr_rdata = 0;
    reg [1:0] csr_response = 0;
    reg csr_active = 0;
    reg write_address = 0, write_data = 0, read_address = 0;

    assign control_awvalid = write_address;
    assign control_wvalid = write_data;
    assign control_arvalid = read_address;
    assign control_awaddr = csr_address;
    assign control_araddr = csr_address;
    assign control_wdata = csr_wdata;
    assign control_wstrb = 4'b1111;
    assign control_bready = csr_active;
    assign control_rready = csr_active;

    always @(posedge clk) if (!rst) begin
        if (!csr_active && csr_request != csr_acknowledge) begin
            csr_active <= 1;
            write_address <= csr_write;
            write_data <= csr_write;
            read_address <= !csr_write;
        end
        if (csr_active && control_awready) write_address <= 0;
        if (csr_active && control_wready) write_data <= 0;
        if (csr_active && control_arready) read_address <= 0;
        if (csr_active && (control_bvalid || control_rvalid)) begin
            csr_active <= 0;
            csr_acknowledge <= csr_request;
            csr_rdata <= control_rdata;
            csr_response <= csr_write ? control_bresp : control_rresp;
        end
    end

    // End of a run: interrupt, cycle limit, or a request that a memory refuses.
    wire irq;
    reg timeout = 0;
    reg failed = 0;
    reg stop = 0;
    always @(posedge clk) if (!rst) begin
        if (cycle >= max_cycles) timeout <= 1;
        if (port_failed != 0) failed <= 1;
        stop <= irq || cycle >= max_cycles || port_failed != 0 || timeout || failed;
    end
