"""Protocol K1 (docs/protocol_k1.md): does a learned sampling policy beat fixed ones, by what it sees?"""
