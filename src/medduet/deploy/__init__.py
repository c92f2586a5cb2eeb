"""From a trained network to its use.

Nothing is imported here, so that an exported network predicts without torch.
"""
