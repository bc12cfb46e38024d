"""Policies of other projects, written anew from what they publish, and two bounds."""
