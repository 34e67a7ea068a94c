"""Grapheme to phoneme on the CMU pronouncing dictionary: the main job, as a user would write it.

    data       words, their split, their tokens, their batches
    model      the transformer, its loss, and decoding
    graphones  how often letters with what they say stand in a row, which judges beams
    train      the loop and its checkpoints
    evaluate   word and phoneme error, and pictures

`python -m tinyfn` is its command line.
"""
