// Behavioural model of the DSP48E2 modes alula instantiates; simulation only.
//
//   P = (D + A[26:0]) * B + Z,   Z = 0, PCIN, P or C, chosen by OPMODE; AMULTSEL = "A" leaves D out
//
// A, C and D have 1 register, AD 0 or 1, B 1 or 2, M, P and OPMODE 1.  Registers start at zero (GSR), reset
// synchronously, and reset wins over clock enable.  Any other configuration stops the simulation instead of computing
// something the silicon would not.  Port and parameter names are the vendor's, so synthesis sees the primitive.
module DSP48E2 #(
    parameter integer AREG = 1, ACASCREG = 1, ADREG = 1, BREG = 1, BCASCREG = 1, DREG = 1, CREG = 1, MREG = 1, PREG = 1,
    parameter integer OPMODEREG = 1, INMODEREG = 1, ALUMODEREG = 1, CARRYINREG = 1, CARRYINSELREG = 1,
    parameter AMULTSEL = "A", BMULTSEL = "B", A_INPUT = "DIRECT", B_INPUT = "DIRECT", PREADDINSEL = "A",
    parameter USE_MULT = "MULTIPLY", USE_SIMD = "ONE48"
) (
    input  wire        CLK,
    input  wire [29:0] A,
    input  wire [17:0] B,
    input  wire [47:0] C,
    input  wire [26:0] D,
    input  wire [47:0] PCIN,
    input  wire [8:0]  OPMODE,
    input  wire [4:0]  INMODE,
    input  wire [3:0]  ALUMODE,
    input  wire        CARRYIN,
    input  wire [2:0]  CARRYINSEL,
    input  wire        CEA1, CEA2, CEAD, CEB1, CEB2, CEC, CED, CEM, CEP, CECTRL, CEINMODE, CEALUMODE, CECARRYIN,
    input  wire        RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTCTRL, RSTINMODE, RSTALUMODE, RSTALLCARRYIN,
    output wire [47:0] P,
    output wire [47:0] PCOUT
);
    localparam [8:0] PRODUCT           = 9'b00_000_01_01;
    localparam [8:0] PRODUCT_PLUS_PCIN = 9'b00_001_01_01;
    localparam [8:0] PRODUCT_PLUS_P    = 9'b00_010_01_01;
    localparam [8:0] PRODUCT_PLUS_C    = 9'b00_011_01_01;
    localparam [4:0] A_OR_A_PLUS_D     = (AMULTSEL == "AD") ? 5'b00100 : 5'b00000;

    initial if (AREG != 1 || ACASCREG != 1 || BREG < 1 || BREG > 2 || BCASCREG != BREG || DREG != 1
                || ADREG < 0 || ADREG > 1 || CREG != 1 || MREG != 1 || PREG != 1 || OPMODEREG != 1
                || INMODEREG != 0 || ALUMODEREG != 0 || CARRYINREG != 0 || CARRYINSELREG != 0
                || (AMULTSEL != "AD" && AMULTSEL != "A") || BMULTSEL != "B" || A_INPUT != "DIRECT" || B_INPUT != "DIRECT"
                || PREADDINSEL != "A" || USE_MULT != "MULTIPLY" || USE_SIMD != "ONE48") begin
        $display("DSP48E2: %m: this model does not cover the chosen parameters");
        $finish;
    end

    reg [26:0] a = 0, d = 0, ad = 0;
    reg [17:0] b1 = 0, b2 = 0;
    reg [8:0]  opmode = 0;
    reg [44:0] m = 0;
    reg [47:0] c = 0, p = 0;

    wire        [26:0] ad_sum = d + a;
    wire signed [26:0] ad_mul = (AMULTSEL == "A") ? a : (ADREG == 1) ? ad : ad_sum;
    wire signed [17:0] b_mul  = b2;
    // A cleared OPMODE selects neither the multiplier nor an addend.
    wire        [47:0] xy = (opmode[3:0] == 4'b0101) ? {{3{m[44]}}, m} : 48'd0;
    wire        [47:0] z  = (opmode == PRODUCT_PLUS_PCIN) ? PCIN : (opmode == PRODUCT_PLUS_P) ? p
                            : (opmode == PRODUCT_PLUS_C) ? c : 48'd0;

    always @(posedge CLK) begin
        if (RSTA) a  <= 0; else if (CEA2) a  <= A[26:0];
        if (RSTB) b1 <= 0; else if (CEB1) b1 <= B;
        if (RSTB) b2 <= 0; else if (CEB2) b2 <= (BREG == 2) ? b1 : B;
        if (RSTC) c  <= 0; else if (CEC)  c  <= C;
        if (RSTD) d  <= 0; else if (CED)  d  <= D;
        if (RSTD) ad <= 0; else if (CEAD) ad <= ad_sum;
        if (RSTM) m  <= 0; else if (CEM)  m  <= ad_mul * b_mul;
        if (RSTP) p  <= 0; else if (CEP)  p  <= xy + z;
        if (RSTCTRL) opmode <= 0; else if (CECTRL) opmode <= OPMODE;
        if (INMODE != A_OR_A_PLUS_D || ALUMODE != 0 || CARRYINSEL != 0 || CARRYIN != 0
            || (OPMODE != PRODUCT && OPMODE != PRODUCT_PLUS_PCIN && OPMODE != PRODUCT_PLUS_P
                && OPMODE != PRODUCT_PLUS_C)) begin
            $display("DSP48E2: %m: this model does not cover INMODE %b OPMODE %b ALUMODE %b CARRYINSEL %b",
                     INMODE, OPMODE, ALUMODE, CARRYINSEL);
            $finish;
        end
    end

    assign P     = p;
    assign PCOUT = p;
endmodule
