"""alula: an open mapping flow for LLaVA on FPGAs."""
