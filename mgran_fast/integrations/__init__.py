"""MGRAN inside other libraries: one module each, and nothing is imported before it is used.

boxmot         an appearance encoder for BoxMOT's trackers
supervision    embeddings of ``supervision.Detections``
torchreid      a model of torchreid's registry, for its engines
fastreid       a meta-architecture and a predictor in FastReID's form
hub            checkpoints with a model card, in folders and on the Hugging Face hub
"""
