"""Cells that networks are made of.

``conv_bn``: convolution with normalisation; ``mbconv``: MBConv blocks and the cell of any block;
``shuffle``: ShuffleNetV2 blocks. Parameters are the same with MindSpore's and with the project's
operators (``src.kernels``).
"""
