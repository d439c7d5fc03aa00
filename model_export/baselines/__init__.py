"""What the net is held against: logistic regression without and with crosses, and gradient-boosted trees.

They learn from the same impressions with the same features, go through the same calibration and are judged on the
same days as the net.
"""
