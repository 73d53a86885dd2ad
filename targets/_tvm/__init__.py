"""TVM on CPUs: ONNX to Relax with kernels of our own, to one library that needs no TVM where it runs.

    machine    what code may be generated for
    workload   what a kernel computes; `epilogue` what it does to the sums before they are stored
    kernels    how: TIR written loop by loop, with integer instructions
    lowering   ONNX to Relax, with those kernels in the place of weighted operators
    library    Relax to a shared library, weights and a description, and back into an engine

Modules here import TVM inside functions, never when they are imported themselves.
"""
