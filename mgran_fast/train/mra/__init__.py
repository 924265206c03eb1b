"""Training of mask and keypoint estimators, apart from MA."""
