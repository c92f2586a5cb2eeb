"""Networks: blocks, the U-Net that takes a block, encoders of libraries, and the registry."""
