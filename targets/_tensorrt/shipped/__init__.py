"""What goes to the device beside the graph: scripts that need only what JetPack ships (a shell, Python 3.6, trtexec).

They are copied, not imported; nothing in here may import the rest of greencc, or anything outside Python's own library.
"""
