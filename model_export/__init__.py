"""From impressions to a bundle: plans, steps, network, graph, calibration, evaluation."""
