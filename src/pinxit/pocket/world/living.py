"""The living things of pocket's world, each drawn looking right in a frame of -1..1."""

from __future__ import annotations

from pinxit.pocket.world import shapes as s
from pinxit.pocket.world.attributes import EMBLEMS, Subject
from pinxit.pocket.world.canvas import Canvas, Colour, against, shifted
from pinxit.pocket.world.shapes import Point

Keypoints = tuple[Point, Point, Point, Point]
DARK: Colour = (0.10, 0.08, 0.10)


def sign(c: Canvas, who: Subject, centre: Point, radius: float) -> None:
    """The subject's emblem, on its body."""
    c.paint(s.emblem(c.u, c.v, centre, radius, EMBLEMS[who.emblem]), who.mark, line=0.7)


def dog(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Standing on four legs: snout, hanging ear, raised tail."""
    u, v = c.u, c.v
    high = 0.24 + 0.10 * (1 - who.slim)
    leg, tail = -0.62 - 0.22 * who.legs, 0.25 + 0.30 * who.tail
    head = 0.23 + 0.07 * who.head
    far = shifted(colour, -0.22)
    c.paint(s.limb(u, v, (-0.56, 0.05), (-0.80, tail + 0.1), 0.10, 0.055), colour, body=True)
    for x in (-0.30, 0.42):
        c.paint(s.limb(u, v, (x, -0.2), (x, leg + 0.05), 0.10, 0.08), far, body=True)
    trunk = s.ellipse(u, v, (-0.08, -0.08), (0.60, high))
    chest = s.ellipse(u, v, (0.34, 0.02), (0.26, high + 0.02))
    c.paint(s.together(trunk, chest, soft=0.15), colour, body=True)
    c.ellipse((-0.05, -0.08 - high * 0.62), (0.20 + 0.22 * who.spread, high * 0.34), who.mark)
    for x in (-0.48, 0.26):
        near = s.limb(u, v, (x, -0.12), (x, leg), 0.12, 0.095)
        c.paint(near, colour, body=True)
        paw = s.ellipse(u, v, (x + 0.04, leg - 0.04), (0.13, 0.075 + 0.05 * who.spread))
        c.paint(paw, who.mark)
    sign(c, who, (-0.20, 0.0), 0.15)
    face = s.ellipse(u, v, (0.52, 0.42), (head, head * 0.95))
    snout = s.limb(u, v, (0.58, 0.34), (0.86, 0.27), 0.14, 0.11)
    c.paint(s.together(face, snout, soft=0.1), colour, body=True)
    c.ellipse((0.95, 0.33), (0.07, 0.06), DARK)
    c.eye((0.60, 0.49), 0.07)
    ear = s.ellipse(u, v, (0.36, 0.34), (0.11, 0.22 + 0.10 * who.tail), 0.25)
    c.paint(ear, who.mark)
    return (0.95, 0.3), (-0.8, tail + 0.1), (0.5, 0.42 + head), (-0.05, leg)


def cat(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Sitting upright: pointed ears, whiskers, curled tail."""
    u, v = c.u, c.v
    wide = 0.36 + 0.10 * (1 - who.slim)
    head = 0.31 + 0.08 * who.head
    tip = 0.05 + 0.50 * who.tail
    tail = s.limb(u, v, (-0.30, -0.68), (-0.74, -0.55), 0.10, 0.10)
    curl = s.limb(u, v, (-0.74, -0.55), (-0.80, tip), 0.10, 0.07)
    c.paint(s.together(tail, curl, soft=0.06), colour, body=True)
    c.ellipse((-0.80, tip), (0.10, 0.12), who.mark)
    body = s.ellipse(u, v, (-0.08, -0.42), (wide, 0.42))
    neck = s.ellipse(u, v, (0.06, -0.12), (wide * 0.72, 0.36))
    c.paint(s.together(body, neck, soft=0.12), colour, body=True)
    c.ellipse((0.14, -0.40), (0.11 + 0.08 * who.spread, 0.20 + 0.10 * who.spread), who.mark)
    for x in (0.06, 0.28):
        c.paint(s.limb(u, v, (x, -0.35), (x, -0.74), 0.10, 0.09), colour, body=True)
        c.ellipse((x + 0.03, -0.80), (0.12, 0.075), who.mark)
    sign(c, who, (-0.24, -0.40), 0.14)
    ear_up = 0.62 + 0.20 * who.legs + head * 0.4
    for side in (-1, 1):
        x = 0.10 + side * head * 0.62
        corners = [(x - 0.17, 0.42), (x + 0.17, 0.42), (x + side * 0.05, ear_up)]
        c.paint(s.polygon(u, v, corners, 0.02), colour, body=True)
        inner = [(x - 0.08, 0.45), (x + 0.08, 0.45), (x + side * 0.04, ear_up - 0.12)]
        c.paint(s.polygon(u, v, inner), who.mark, line=0)
    c.paint(s.ellipse(u, v, (0.10, 0.30), (head * 1.12, head)), colour, body=True)
    for x in (-0.05, 0.25):
        c.eye((x + 0.03, 0.35), 0.085)
    c.ellipse((0.13, 0.20), (0.05, 0.035), (0.85, 0.4, 0.45))
    for dy in (-0.04, 0.05):
        for side in (-1, 1):
            whisker = s.limb(
                u, v, (0.12 + side * 0.10, 0.17), (0.12 + side * 0.52, 0.17 + dy), 0.012, 0.012
            )
            c.paint(whisker, against(colour, 0.7), line=0)
    return (0.42, 0.25), (-0.8, tip), (0.1, ear_up), (0.05, -0.84)


def rabbit(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Crouching, round, with two long ears and a ball of a tail."""
    u, v = c.u, c.v
    high = 0.36 + 0.10 * (1 - who.slim)
    ear = 0.24 + 0.22 * who.tail
    head = 0.24 + 0.06 * who.head
    c.ellipse((-0.66, -0.42), (0.13 + 0.05 * who.legs, 0.13 + 0.05 * who.legs), who.mark)
    c.paint(s.ellipse(u, v, (-0.14, -0.36), (0.54, high)), colour, body=True)
    c.ellipse((0.12, -0.60), (0.18 + 0.14 * who.spread, 0.16), who.mark)
    c.paint(s.ellipse(u, v, (-0.32, -0.50), (0.28, 0.26)), colour, body=True)
    for x, r in ((-0.20, 0.24), (0.34, 0.15)):
        c.paint(s.ellipse(u, v, (x, -0.76), (r, 0.085)), colour, body=True)
    sign(c, who, (-0.20, -0.20), 0.14)
    for x, turn, tone in ((0.20, 0.28, shifted(colour, -0.2)), (0.38, 0.05, colour)):
        top = 0.24 + ear
        c.paint(s.ellipse(u, v, (x, top), (0.10, ear), turn), tone, body=True)
        c.paint(s.ellipse(u, v, (x, top), (0.045, ear * 0.72), turn), who.mark, line=0)
    c.paint(s.ellipse(u, v, (0.36, 0.06), (head * 1.15, head)), colour, body=True)
    c.eye((0.42, 0.13), 0.075)
    c.ellipse((0.36 + head * 1.1, 0.04), (0.05, 0.04), (0.9, 0.45, 0.5))
    return (0.36 + head * 1.15, 0.04), (-0.75, -0.42), (0.35, 0.24 + 2 * ear), (0.0, -0.84)


def bird(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """In profile on thin legs: beak, wing, fan of a tail."""
    u, v = c.u, c.v
    high = 0.36 + 0.10 * (1 - who.slim)
    head = 0.23 + 0.07 * who.head
    leg = -0.62 - 0.22 * who.legs
    far = -0.72 - 0.24 * who.tail
    yellow: Colour = (0.95, 0.66, 0.12)
    for x in (-0.08, 0.10):
        c.paint(s.limb(u, v, (x, -0.35), (x, leg), 0.035, 0.03), yellow)
        c.paint(s.limb(u, v, (x, leg), (x + 0.14, leg - 0.02), 0.03, 0.025), yellow)
    fan = [(-0.30, -0.02), (far, 0.22), (far - 0.04, -0.06), (-0.30, -0.24)]
    c.paint(s.polygon(u, v, fan, 0.03), shifted(colour, -0.2), body=True)
    body = s.ellipse(u, v, (-0.02, -0.10), (0.50, high), 0.35)
    skull = s.ellipse(u, v, (0.36, 0.36), (head, head))
    c.paint(s.together(body, skull, soft=0.14), colour, body=True)
    c.ellipse((0.24, -0.16), (0.14 + 0.09 * who.spread, 0.22), who.mark, -0.3)
    beak = [(0.36 + head * 0.8, 0.46), (0.36 + head * 0.8, 0.24), (0.92, 0.33)]
    c.paint(s.polygon(u, v, beak, 0.015), yellow)
    c.eye((0.44, 0.42), 0.075)
    crest = [(0.24, 0.36 + head * 0.7), (0.40, 0.36 + head * 0.9), (0.18, 0.50 + head)]
    c.paint(s.polygon(u, v, crest, 0.03), who.mark)
    wing = s.ellipse(u, v, (-0.16, -0.06), (0.33, 0.20 + 0.05 * who.spread), 0.30)
    c.paint(wing, against(colour, 0.22), body=True)
    sign(c, who, (-0.16, -0.06), 0.13)
    return (0.92, 0.33), (far, 0.08), (0.3, 0.5 + head), (0.05, leg)


def fish(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """In profile: forked tail, fins above and below."""
    u, v = c.u, c.v
    high = 0.34 + 0.14 * (1 - who.slim)
    far = -0.74 - 0.18 * who.tail
    fin = 0.18 + 0.24 * who.legs
    tail = [(-0.42, 0.02), (far, 0.40), (far + 0.16, 0.0), (far, -0.40), (-0.42, -0.06)]
    c.paint(s.polygon(u, v, tail, 0.03), who.mark)
    top = [(-0.28, high * 0.6), (0.22, high * 0.7), (-0.22, high * 0.8 + fin)]
    c.paint(s.polygon(u, v, top, 0.04), who.mark)
    below = [(-0.10, -high * 0.7), (0.16, -high * 0.7), (-0.16, -high * 0.7 - fin * 0.8)]
    c.paint(s.polygon(u, v, below, 0.04), who.mark)
    body = s.ellipse(u, v, (0.06, 0), (0.62, high))
    c.paint(body, colour, body=True)
    front = s.common(body, s.ellipse(u, v, (0.78, 0), (0.34 + 0.12 * who.head, 0.6)))
    c.paint(front, shifted(colour, 0.25) if who.spread < 0.5 else shifted(colour, -0.25))
    c.eye((0.46, 0.10), 0.085)
    sign(c, who, (-0.06, 0.02), 0.16)
    mouth = s.limb(u, v, (0.56, -0.14), (0.66, -0.10), 0.018, 0.018)
    c.paint(mouth, DARK, line=0)
    return (0.68, 0.0), (far, 0.0), (-0.1, high * 0.8 + fin), (0.0, -high)


def turtle(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """A round shell on short legs, with the head stretched out."""
    u, v = c.u, c.v
    dome = 0.52 + 0.20 * (1 - who.slim)
    head = 0.18 + 0.06 * who.head
    leg = -0.62 - 0.16 * who.legs
    reach = 0.70
    for x in (-0.42, 0.36):
        c.paint(s.limb(u, v, (x, -0.40), (x, leg), 0.13, 0.12), who.mark)
    tail = [(-0.58, -0.34), (-0.66 - 0.26 * who.tail, -0.50), (-0.52, -0.50)]
    c.paint(s.polygon(u, v, tail, 0.02), who.mark)
    neck = s.limb(u, v, (0.40, -0.34), (reach, -0.02), 0.13, 0.12)
    skull = s.ellipse(u, v, (reach + 0.06, 0.02), (head * 1.2, head))
    c.paint(s.together(neck, skull, soft=0.08), who.mark)
    c.eye((reach + 0.10, 0.08), 0.065)
    shell = s.common(s.ellipse(u, v, (-0.08, -0.38), (0.62, dome)), -0.42 - v)
    c.paint(shell, colour, body=True)
    rim = s.limb(u, v, (-0.64, -0.42), (0.48, -0.42), 0.07 + 0.04 * who.spread, 0.07)
    c.paint(rim, against(colour, 0.35))
    sign(c, who, (-0.08, -0.12), 0.18)
    return (reach + 0.2, 0.0), (-0.7, -0.42), (-0.08, -0.38 + dome), (0.0, leg)


def horse(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Standing on long legs: arched neck, long face, mane and falling tail."""
    u, v = c.u, c.v
    high = 0.20 + 0.08 * (1 - who.slim)
    leg, fall = -0.68 - 0.16 * who.legs, -0.28 - 0.34 * who.tail
    reach = 0.74 + 0.12 * who.head
    mane = 0.10 + 0.05 * who.spread
    far = shifted(colour, -0.22)
    tail = s.limb(u, v, (-0.52, 0.08), (-0.74, 0.0), 0.07, 0.10)
    hair = s.limb(u, v, (-0.74, 0.0), (-0.82, fall), 0.10, 0.06)
    c.paint(s.together(tail, hair, soft=0.1), who.mark)
    for x in (-0.28, 0.32):
        c.paint(s.limb(u, v, (x, -0.15), (x + 0.03, leg + 0.1), 0.09, 0.055), far, body=True)
        c.paint(s.box(u, v, (x + 0.05, leg + 0.06), (0.08, 0.055), 0.02), DARK)
    for x, y in ((0.14, 0.30), (0.20, 0.50), (0.30, 0.66)):
        c.ellipse((x, y), (mane, 0.17), who.mark, 0.35)
    trunk = s.ellipse(u, v, (-0.12, -0.04), (0.50, high))
    rump = s.ellipse(u, v, (-0.38, 0.0), (0.22, high + 0.03))
    chest = s.ellipse(u, v, (0.24, 0.02), (0.22, high + 0.03))
    neck = s.limb(u, v, (0.24, 0.08), (0.42, 0.60), 0.20, 0.13)
    c.paint(s.together(trunk, rump, chest, neck, soft=0.16), colour, body=True)
    for x in (-0.46, 0.18):
        c.paint(s.limb(u, v, (x, -0.10), (x + 0.01, leg), 0.12, 0.065), colour, body=True)
        c.paint(s.box(u, v, (x + 0.03, leg - 0.03), (0.095, 0.065), 0.02), DARK)
    sign(c, who, (-0.16, 0.0), 0.15)
    ear = [(0.34, 0.66), (0.46, 0.70), (0.38, 0.92)]
    c.paint(s.polygon(u, v, ear, 0.02), colour, body=True)
    skull = s.ellipse(u, v, (0.46, 0.60), (0.18, 0.17))
    face = s.limb(u, v, (0.48, 0.58), (reach, 0.30), 0.14, 0.10)
    c.paint(s.together(skull, face, soft=0.08), colour, body=True)
    c.paint(s.limb(u, v, (reach - 0.02, 0.31), (reach + 0.02, 0.28), 0.11, 0.10), who.mark)
    c.ellipse((reach + 0.05, 0.32), (0.03, 0.025), DARK)
    c.ellipse((0.44, 0.76), (0.13, 0.06 + 0.03 * who.spread), who.mark, -0.5)
    c.eye((0.54, 0.60), 0.085)
    return (reach + 0.1, 0.28), (-0.84, fall), (0.38, 0.94), (-0.1, leg - 0.08)


def frog(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Squatting, wide: two great eyes on top, a long mouth, folded hind legs."""
    u, v = c.u, c.v
    wide = 0.50 + 0.12 * (1 - who.slim)
    head = 0.27 + 0.07 * who.head
    rise = 0.20 + 0.20 * who.tail
    thigh = 0.24 + 0.08 * who.legs
    foot = 0.16 + 0.08 * who.spread
    far = shifted(colour, -0.18)
    c.paint(s.ellipse(u, v, (0.54, -0.54), (0.20, thigh), -0.4), far, body=True)
    c.ellipse((0.68, -0.76), (foot, 0.07), who.mark)
    trunk = s.ellipse(u, v, (-0.04, -0.40), (wide, 0.38))
    c.paint(trunk, colour, body=True)
    c.ellipse((0.16, -0.46), (0.18 + 0.12 * who.spread, 0.28), who.mark)
    for x in (0.0, 0.38):
        c.paint(s.limb(u, v, (x, -0.36), (x + 0.02, -0.72), 0.10, 0.075), colour, body=True)
        c.ellipse((x + 0.05, -0.77), (0.14, 0.06), who.mark)
    c.paint(s.ellipse(u, v, (-0.48, -0.50), (0.26, thigh), 0.4), colour, body=True)
    c.ellipse((-0.42, -0.77), (foot + 0.10, 0.07), who.mark)
    sign(c, who, (-0.48, -0.46), 0.15)
    skull = s.ellipse(u, v, (0.12, 0.04), (wide + 0.08, head))
    lids = [s.ellipse(u, v, (x, rise + 0.10), (0.21, 0.21)) for x in (-0.16, 0.44)]
    c.paint(s.together(skull, *lids, soft=0.08), colour, body=True)
    for x in (-0.14, 0.46):
        c.eye((x, rise + 0.12), 0.15)
    smile = s.ring(u, v, (0.18, 0.10), (wide * 0.82, head * 0.92), 0.045)
    c.paint(s.common(smile, v - 0.02), against(colour, 0.8), line=0)
    for x in (0.22, 0.34):
        c.paint(s.ellipse(u, v, (x, 0.09), (0.03, 0.025)), against(colour, 0.8), line=0)
    return (0.2 + wide, 0.04), (-0.74, -0.5), (0.44, rise + 0.29), (0.05, -0.83)
