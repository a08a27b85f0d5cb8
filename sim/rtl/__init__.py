"""The RTL backend: Verilog under Verilator, with a native memory model and cocotb."""
