"""Bridges to other libraries: scikit-learn's classifiers, trainers. None is imported before it is
used.
"""
