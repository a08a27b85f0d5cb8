"""The RTL backend: Verilog in Verilator or in Icarus Verilog (`SIM=icarus`), its registers driven by cocotb."""
