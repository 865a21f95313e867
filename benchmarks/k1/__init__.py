"""Protocol K1: does a learned sampling policy beat fixed orders, and because it sees the patient? docs/protocol_k1.md"""
