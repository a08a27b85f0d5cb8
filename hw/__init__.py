"""The accelerator in Amaranth, one block a file, and the Verilog writer."""
